"""The strategy `median`: the middle of the members, element by element."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.hookspecs import hookimpl
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="median",
        version=1,
        summary="element-wise median of the members",
        fuse_weights=median,
        part="elements",
        numerics="exact",
        is_symmetric=True,
    )


def median(tensors: Sequence[FloatArray], context: FuseContext) -> FloatArray:
    """The median of each element over all members; of an even number, the middle two's mean.

    The members' weights do not count. Where a member is NaN, so is the result.
    """
    return np.asarray(np.median(np.stack(tensors), axis=0))
