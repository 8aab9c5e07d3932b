"""The strategy `breadcrumbs_ties`: largest and smallest changes dropped, signs elected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._breadcrumbs import GAMMA, RESCALE, measure
from arc_halo.strategies._schemas import (
    DENSITY,
    DIVIDE,
    ELECT,
    SCALE,
    PerMember,
    schema,
)
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="breadcrumbs_ties",
        version=1,
        summary="the largest and smallest changes dropped, then signs elected as in ties",
        fuse_weights=breadcrumbs_ties,
        measure=measure,
        part="elements",
        numerics="exact",
        is_symmetric=True,
        needs_base=True,
        member_params=("density", "gamma"),
        params_schema=schema(
            density=DENSITY,
            gamma=GAMMA,
            rescale=RESCALE,
            elect=ELECT,
            divide=DIVIDE,
            scale=SCALE,
        ),
    )


def breadcrumbs_ties(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    density: PerMember = 1.0,
    gamma: PerMember = 0.01,
    rescale: str = "none",
    elect: str = "weighted",
    divide: str = "weights",
    scale: float = 1.0,
) -> FloatArray:
    """B + scale * the sum over the members that agree, of changes dropped as in `breadcrumbs`.

    Election and division are those of `ties`.
    """
    from arc_halo.strategies._sparse import elected_merge

    drop, factors = context.measured
    return elected_merge(tensors, context, drop, factors, scale, elect=elect, divide=divide)
