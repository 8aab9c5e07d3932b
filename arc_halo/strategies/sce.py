"""The strategy `sce`: where the members differ most, weighed by how much each changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import number, schema
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.strategies._selection import Keeper
    from arc_halo.types import FloatArray, Scan


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="sce",
        version=1,
        summary="select by variance, weigh by size, erase minorities",
        measure=measure,
        fuse_weights=sce,
        part="elements",
        numerics="exact",
        is_symmetric=True,
        needs_base=True,
        min_members=2,
        params_schema=schema(
            select_topk=number(
                "The share of the elements that differ between members that is kept, those of the "
                "largest variance.",
                1.0,
                exclusiveMinimum=0,
                maximum=1,
            )
        ),
    )


def measure(
    scan: Scan, context: FuseContext, *, select_topk: float = 1.0
) -> tuple[Keeper | None, list[float]]:
    """Which elements are kept, and the weight of each member."""
    from arc_halo.strategies._selection import cuts
    from arc_halo.strategies._sums import deltas, scalar_product

    cut = None
    if select_topk < 1:
        differing = sum(int(np.count_nonzero(_variance(deltas(block)))) for block in scan())
        keep = max(1, int(select_topk * differing))
        passes = lambda: ([_variance(deltas(block))] for block in scan())  # noqa: E731
        (cut,) = cuts(passes, [keep], math.prod(context.shape))
    keeper = cut.keeper() if cut else None
    squares = [0.0] * len(context.weights)
    for block in scan():
        changes = _kept(deltas(block), keeper)
        squares = [q + scalar_product(c, c) for q, c in zip(squares, changes, strict=True)]
    total = math.fsum(squares)
    weights = [q / total if total else 1 / len(squares) for q in squares]
    return (cut.keeper() if cut else None), weights


def sce(
    tensors: Sequence[FloatArray], context: FuseContext, *, select_topk: float = 1.0
) -> FloatArray:
    """B + the sum of a_i d_i over the members that agree, divided by the sum of their a_i.

    Only elements of the largest variance over the members count. a_i is the sum of squares of
    member i's kept changes, over that of all. Signs are elected by the plain changes. The members'
    weights do not count.

    F. Wan et al., "FuseChat" (arXiv 2408.07990).
    """
    from arc_halo.strategies._signs import elected
    from arc_halo.strategies._sums import differences, moved

    keeper, weights = context.measured
    changes = _kept(differences(tensors, context.base), keeper)
    return moved(context, elected(changes, weights, elect="unweighted", divide="weights"))


def _variance(changes: Sequence[FloatArray]) -> FloatArray:
    """Over the members, in the changes' own dtype; exactly 0 where all are equal."""
    mean = changes[0].copy()
    is_equal = np.ones(mean.shape, np.bool_)
    for change in changes[1:]:
        np.add(mean, change, out=mean)
        is_equal &= change == changes[0]
    mean /= len(changes)
    total = np.zeros_like(mean)
    for change in changes:
        gap = np.subtract(change, mean)
        np.add(total, np.multiply(gap, gap, out=gap), out=total)
    total /= len(changes)
    total[is_equal] = 0
    return total


def _kept(changes: list[FloatArray], keeper: Keeper | None) -> list[FloatArray]:
    if keeper is None:
        return changes
    # Which elements are kept is one question for all members.
    mask = keeper.mask(_variance(changes))
    for change in changes:
        np.multiply(change, mask, out=change)
    return changes
