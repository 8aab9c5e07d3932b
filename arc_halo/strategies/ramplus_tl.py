"""The strategy `ramplus_tl`: as `ram`, and more of what only one member changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import number, schema
from arc_halo.strategies.ram import EPSILON
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray, Scan


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="ramplus_tl",
        version=1,
        summary="as ram, what only one member changed strengthened",
        measure=measure,
        fuse_weights=ramplus_tl,
        part="elements",
        numerics="exact",
        is_symmetric=True,
        needs_base=True,
        params_schema=schema(
            epsilon=EPSILON,
            r=number("How much the share of shared changes strengthens the others.", 0.1),
            alpha=number("The most that this share counts.", 0.2, minimum=0),
        ),
    )


def measure(
    scan: Scan,
    context: FuseContext,
    *,
    epsilon: float = 1e-5,
    r: float = 0.1,
    alpha: float = 0.2,
) -> list[float]:
    """What each member's own changes are multiplied by."""
    from arc_halo.strategies._sums import deltas

    members = len(context.weights)
    alone, shared = np.zeros((2, members), np.int64)
    for block in scan():
        masks = np.stack([np.abs(change) > epsilon for change in deltas(block)])
        count = masks.sum(axis=0)
        alone += np.count_nonzero(masks & (count == 1), axis=1)
        shared += np.count_nonzero(masks & (count > 1), axis=1)
    ratios = [int(s) / int(a) if a else 0.0 for s, a in zip(shared, alone, strict=True)]
    return [1 + r * min(max(ratio, 0.0), alpha) for ratio in ratios]


def ramplus_tl(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    epsilon: float = 1e-5,
    r: float = 0.1,
    alpha: float = 0.2,
) -> FloatArray:
    """As `ram`, but what only member i changed is multiplied by 1 + r * clip(s_i / u_i, 0, alpha).

    In the tensor u_i counts the elements that only i changed by more than `epsilon`, s_i those
    that others changed too. The members' weights do not count. In float64, rounded once.

    "Reinforced agent merging", arXiv 2601.13572.
    """
    from arc_halo.strategies._sums import differences, moved
    from arc_halo.strategies.ram import mean_of_changes

    changes = differences(tensors, context.base)
    masks = [np.abs(change) > epsilon for change in changes]
    count = np.zeros(changes[0].shape, np.int64)
    for mask in masks:
        count += mask
    merged = mean_of_changes(changes, masks)
    for mask, factor in zip(masks, context.measured, strict=True):
        np.multiply(merged, factor, out=merged, where=mask & (count == 1))
    return moved(context, merged)
