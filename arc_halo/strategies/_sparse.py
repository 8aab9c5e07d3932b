"""Changes of which a part is dropped: what DARE, DELLA and Breadcrumbs share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.strategies._signs import elected
from arc_halo.strategies._sums import deltas, differences, moved
from arc_halo.types import Block, FuseContext

if TYPE_CHECKING:
    from arc_halo.types import FloatArray, Scan

Drop = Callable[[Sequence["FloatArray"], int], list["FloatArray"]]
"""Makes of every member's change what is left of it, given where the part begins."""


def l1_factors(scan: Scan, drop: Drop) -> list[float]:
    """What each member's rest is multiplied by to have the sum of magnitudes it had before."""
    before: list[float] = []
    after: list[float] = []
    for block in scan():
        changes = deltas(block)
        before = _added(before, changes)
        after = _added(after, drop(changes, block.start))
    return [b / a if a else 1.0 for b, a in zip(before, after, strict=True)]


def linear_merge(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    drop: Drop,
    factors: Sequence[float] | None,
    scale: float,
) -> FloatArray:
    """B + scale * sum of w_i times what is left of d_i."""
    rest = drop(differences(tensors, context.base), context.start)
    total = np.zeros_like(rest[0])
    for change, weight in zip(rest, _weights(context, factors), strict=True):
        if weight:
            np.add(total, change * weight, out=total)
    return moved(context, total, scale)


def elected_merge(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    drop: Drop,
    factors: Sequence[float] | None,
    scale: float,
    *,
    elect: str,
    divide: str,
) -> FloatArray:
    """The same, of those who agree with the elected sign, divided."""
    rest = drop(differences(tensors, context.base), context.start)
    if factors is not None:
        rest = [change * factor for change, factor in zip(rest, factors, strict=True)]
    merged = elected(rest, context.weights, elect=elect, divide=divide)
    return moved(context, merged, scale)


def parts(scan: Scan) -> Iterator[list[FloatArray]]:
    """The changes, part by part."""
    block: Block
    for block in scan():
        yield deltas(block)


def _weights(context: FuseContext, factors: Sequence[float] | None) -> list[float]:
    if factors is None:
        return list(context.weights)
    return [w * f for w, f in zip(context.weights, factors, strict=True)]


def _added(sums: list[float], changes: Sequence[FloatArray]) -> list[float]:
    new = [float(np.add.reduce(np.abs(c).reshape(-1), dtype=np.float64)) for c in changes]
    return [a + b for a, b in zip(sums or [0.0] * len(new), new, strict=True)]
