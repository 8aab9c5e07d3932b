"""The strategy `breadcrumbs`: the largest and the smallest changes dropped, the rest added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._breadcrumbs import GAMMA, RESCALE, measure
from arc_halo.strategies._schemas import (
    DENSITY,
    NORMALIZE,
    SCALE,
    PerMember,
    schema,
    weight_sum,
)
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="breadcrumbs",
        version=1,
        summary="the largest and smallest changes dropped, the rest added to the base",
        fuse_weights=breadcrumbs,
        measure=measure,
        part="elements",
        numerics="exact",
        is_symmetric=True,
        needs_base=True,
        member_params=("density", "gamma"),
        params_schema=schema(
            density=DENSITY, gamma=GAMMA, rescale=RESCALE, scale=SCALE, normalize=NORMALIZE
        ),
    )


def breadcrumbs(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    density: PerMember = 1.0,
    gamma: PerMember = 0.01,
    rescale: str = "none",
    scale: float = 1.0,
    normalize: bool = False,
) -> FloatArray:
    """B + scale * sum of w_i d_i, without floor(gamma n) largest and the smallest elements of d_i.

    The smallest are as many as leave floor(density n) with the largest. The sum is divided by
    that of the weights if `normalize`.
    """
    from arc_halo.strategies._sparse import linear_merge

    drop, factors = context.measured
    divisor = weight_sum(context, "breadcrumbs") if normalize else 1.0
    return linear_merge(tensors, context, drop, factors, scale / divisor)
