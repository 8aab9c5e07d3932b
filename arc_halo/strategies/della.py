"""The strategy `della`: changes dropped at random by rank, signs elected, who agrees added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._della import DENSITY, EPSILON, RESCALE, measure
from arc_halo.strategies._schemas import (
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
        name="della",
        version=1,
        summary="changes dropped at random by rank, then signs elected as in ties",
        fuse_weights=della,
        measure=measure,
        part="rows",
        numerics="exact",
        is_symmetric=True,
        is_random=True,
        needs_base=True,
        member_params=("density", "epsilon"),
        params_schema=schema(
            density=DENSITY,
            epsilon=EPSILON,
            rescale=RESCALE,
            elect=ELECT,
            divide=DIVIDE,
            scale=SCALE,
            seed=SEED,
        ),
    )


def della(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    density: PerMember = 0.5,
    epsilon: PerMember = 0.15,
    rescale: str = "inverse_p",
    elect: str = "weighted",
    divide: str = "weights",
    scale: float = 1.0,
    seed: int = 0,
) -> FloatArray:
    """B + scale * the sum over the members that agree, of changes dropped as in `della_linear`.

    Election and division are those of `ties`.
    """
    from arc_halo.strategies._della import dropping
    from arc_halo.strategies._sparse import elected_merge

    drop = dropping(context, density, epsilon, rescale, seed)
    return elected_merge(
        tensors, context, drop, context.measured, scale, elect=elect, divide=divide
    )
