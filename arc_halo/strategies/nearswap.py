"""The strategy `nearswap`: the member where it is near the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import schema
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="nearswap",
        version=1,
        summary="the member where it is near the base, else mostly the base",
        fuse_weights=nearswap,
        part="elements",
        numerics="exact",
        needs_base=True,
        max_members=1,
        params_schema=schema(
            t={
                "type": "number",
                "description": "Up to this distance the member is taken as it is.",
                "minimum": 0,
            }
        ),
    )


def nearswap(tensors: Sequence[FloatArray], context: FuseContext, *, t: float) -> FloatArray:
    """s W + (1 - s) B with s = clip(t / max(abs(W - B), 1e-6), 0, 1), element by element.

    In float64, rounded once.
    """
    from arc_halo.strategies._sums import moved

    assert context.base is not None
    change = np.subtract(tensors[0], context.base, dtype=np.float64)
    share = np.clip(t / np.maximum(np.abs(change), 1e-6), 0, 1)
    return moved(context, change * share)
