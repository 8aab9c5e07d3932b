"""The strategy `dare_linear`: changes dropped at random, and the rest added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._dare import RESCALE, measure
from arc_halo.strategies._schemas import (
    DENSITY,
    NORMALIZE,
    SCALE,
    SEED,
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
        name="dare_linear",
        version=1,
        summary="changes dropped at random, the rest added to the base",
        fuse_weights=dare_linear,
        measure=measure,
        part="elements",
        numerics="exact",
        is_symmetric=True,
        is_random=True,
        needs_base=True,
        member_params=("density",),
        params_schema=schema(
            density=DENSITY, rescale=RESCALE, scale=SCALE, normalize=NORMALIZE, seed=SEED
        ),
    )


def dare_linear(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    density: PerMember = 1.0,
    rescale: str = "inverse_density",
    scale: float = 1.0,
    normalize: bool = False,
    seed: int = 0,
) -> FloatArray:
    """B + scale * sum of w_i times d_i, of which each element is kept with probability `density`.

    Which elements are kept depends on `seed`, the member's weights, the tensor and the element
    alone. The sum is divided by that of the weights if `normalize`.
    """
    from arc_halo.strategies._dare import dropping
    from arc_halo.strategies._sparse import linear_merge

    divisor = weight_sum(context, "dare_linear") if normalize else 1.0
    drop = dropping(context, density, rescale, seed)
    return linear_merge(tensors, context, drop, context.measured, scale / divisor)
