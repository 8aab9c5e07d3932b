"""The strategy `task_arithmetic`: the base, and the weighted changes of all members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import NORMALIZE, SCALE, schema, weight_sum
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="task_arithmetic",
        version=2,
        summary="the base plus the weighted changes of the members",
        fuse_weights=task_arithmetic,
        part="elements",
        numerics="exact",
        is_symmetric=True,
        needs_base=True,
        params_schema=schema(scale=SCALE, normalize=NORMALIZE),
    )


def task_arithmetic(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    scale: float = 1.0,
    normalize: bool = False,
) -> FloatArray:
    """B + scale * sum of w_i (W_i - B), the sum divided by that of the weights if `normalize`.

    In float64, or float32 for what `sum_dtype` says. Raises `FusionError` where the weights to
    divide by add up to zero.

    G. Ilharco et al., "Editing models with task arithmetic" (ICLR 2023).
    """
    from arc_halo.strategies._sums import added, sum_dtype

    factor = scale / (weight_sum(context, "task_arithmetic") if normalize else 1.0)
    shares = [weight * factor for weight in context.weights]
    # With the base's own, which is 1 less all of them, they add up to 1.
    return added(tensors, context, shares, sum_dtype(context, shares, total=1))
