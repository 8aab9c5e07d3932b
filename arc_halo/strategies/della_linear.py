"""The strategy `della_linear`: changes dropped at random by rank, the rest added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._della import DENSITY, EPSILON, RESCALE, measure
from arc_halo.strategies._schemas import (
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
        name="della_linear",
        version=1,
        summary="changes dropped at random by rank, the rest added to the base",
        fuse_weights=della_linear,
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
            scale=SCALE,
            normalize=NORMALIZE,
            seed=SEED,
        ),
    )


def della_linear(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    density: PerMember = 0.5,
    epsilon: PerMember = 0.15,
    rescale: str = "inverse_p",
    scale: float = 1.0,
    normalize: bool = False,
    seed: int = 0,
) -> FloatArray:
    """B + scale * sum of w_i times d_i, of which an element is kept by its rank in its row.

    The probability goes evenly from density - epsilon for the smallest to density + epsilon for
    the largest. The sum is divided by that of the weights if `normalize`. Raises `FusionError`
    where probabilities would leave (0, 1).
    """
    from arc_halo.strategies._della import dropping
    from arc_halo.strategies._sparse import linear_merge

    divisor = weight_sum(context, "della_linear") if normalize else 1.0
    drop = dropping(context, density, epsilon, rescale, seed)
    return linear_merge(tensors, context, drop, context.measured, scale / divisor)
