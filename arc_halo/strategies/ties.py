"""The strategy `ties`: small changes trimmed, signs elected, and who agrees averaged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import DENSITY, DIVIDE, ELECT, SCALE, schema
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.strategies._selection import Keeper
    from arc_halo.types import FloatArray, Scan


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="ties",
        version=1,
        summary="trim small changes, elect signs, add up who agrees",
        measure=measure,
        fuse_weights=ties,
        part="elements",
        numerics="exact",
        needs_base=True,
        params_schema=schema(density=DENSITY, elect=ELECT, divide=DIVIDE, scale=SCALE),
    )


def measure(
    scan: Scan, context: FuseContext, *, density: float = 1.0, **_: object
) -> list[Keeper] | None:
    """Who is among the largest, for each member; None where all are kept."""
    from arc_halo.strategies._selection import cuts
    from arc_halo.strategies._sums import deltas

    size = math.prod(context.shape)
    keep = max(1, int(density * size))
    if keep >= size:
        return None
    counts = [keep] * len(context.weights)
    found = cuts(lambda: (deltas(block) for block in scan()), counts, size)
    return [cut.keeper() for cut in found]


def ties(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    density: float = 1.0,
    elect: str = "weighted",
    divide: str = "weights",
    scale: float = 1.0,
) -> FloatArray:
    """B + scale * the sum of w_i d_i over the members that agree with the elected sign, divided.

    Of each change d_i = W_i - B only its max(1, floor(density * n)) largest elements count, in the
    tensor, equal ones by their place. Signs are elected and the sum divided as `elect` and `divide`
    say; the defaults are mergekit's.

    P. Yadav et al., "TIES-Merging" (NeurIPS 2023).
    """
    from arc_halo.strategies._signs import elected, factors
    from arc_halo.strategies._sums import differences, moved

    changes = differences(tensors, context.base)
    for change, keeper in zip(changes, context.measured or (), strict=False):
        np.multiply(change, factors(keeper.mask(change), change), out=change)
    merged = elected(changes, context.weights, elect=elect, divide=divide)
    return moved(context, merged, scale)
