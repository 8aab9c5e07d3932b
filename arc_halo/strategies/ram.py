"""The strategy `ram`: the mean of those who changed an element."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import number, schema
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import FloatArray


EPSILON = number("A change up to this is none.", 1e-5, minimum=0)


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="ram",
        version=1,
        summary="the average of those who changed an element",
        fuse_weights=ram,
        part="elements",
        numerics="exact",
        is_symmetric=True,
        needs_base=True,
        params_schema=schema(epsilon=EPSILON),
    )


def ram(
    tensors: Sequence[FloatArray], context: FuseContext, *, epsilon: float = 1e-5
) -> FloatArray:
    """B + the mean of d_i over the members that changed the element by more than `epsilon`.

    Where nobody did it is B. The members' weights do not count. In float64, rounded once.

    "Reinforced agent merging", arXiv 2601.13572.
    """
    from arc_halo.strategies._sums import differences, moved

    changes = differences(tensors, context.base)
    masks = [np.abs(change) > epsilon for change in changes]
    return moved(context, mean_of_changes(changes, masks))


def mean_of_changes(
    changes: Sequence[FloatArray], masks: Sequence[NDArray[np.bool_]]
) -> NDArray[np.float64]:
    """The mean of each element over those whose mask has it, 0 where none has."""
    total, count = np.zeros(changes[0].shape), np.zeros(changes[0].shape)
    for change, mask in zip(changes, masks, strict=True):
        np.add(total, change, out=total, where=mask)
        np.add(count, 1.0, out=count, where=mask)
    return np.divide(total, count, out=total, where=count != 0)
