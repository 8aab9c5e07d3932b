"""The strategy `dare_ties`: changes dropped at random, signs elected, who agrees added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._dare import RESCALE, measure
from arc_halo.strategies._schemas import (
    DENSITY,
    DIVIDE,
    ELECT,
    SCALE,
    SEED,
    PerMember,
    schema,
)
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="dare_ties",
        version=1,
        summary="changes dropped at random, then signs elected as in ties",
        fuse_weights=dare_ties,
        measure=measure,
        part="elements",
        numerics="exact",
        is_symmetric=True,
        is_random=True,
        needs_base=True,
        member_params=("density",),
        params_schema=schema(
            density=DENSITY,
            rescale=RESCALE,
            elect=ELECT,
            divide=DIVIDE,
            scale=SCALE,
            seed=SEED,
        ),
    )


def dare_ties(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    density: PerMember = 1.0,
    rescale: str = "inverse_density",
    elect: str = "weighted",
    divide: str = "weights",
    scale: float = 1.0,
    seed: int = 0,
) -> FloatArray:
    """B + scale * the sum over the members that agree, of changes dropped as in `dare_linear`.

    Election and division are those of `ties`.
    """
    from arc_halo.strategies._dare import dropping
    from arc_halo.strategies._sparse import elected_merge

    drop = dropping(context, density, rescale, seed)
    return elected_merge(
        tensors, context, drop, context.measured, scale, elect=elect, divide=divide
    )
