"""The strategy `linear`: the weighted average of the members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import flag, schema, weight_sum
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="linear",
        version=2,
        summary="weighted average of the members",
        fuse_weights=linear,
        part="elements",
        numerics="exact",
        is_symmetric=True,
        params_schema=schema(
            normalize=flag("Divide by the sum of the members' weights.", default=True)
        ),
    )


def linear(
    tensors: Sequence[FloatArray], context: FuseContext, *, normalize: bool = True
) -> FloatArray:
    """The sum of each member times its weight, divided by the sum of weights if `normalize`.

    Added up in float64, or float32 for what `sum_dtype` says; a member of weight 0 takes no part.
    Raises `FusionError` when the weights to normalize by add up to zero.

    The average of fine-tunes as in Wortsman et al., "Model soups" (ICML 2022).
    """
    from arc_halo.strategies._sums import sum_dtype, weighted_sum

    scale = weight_sum(context, "linear") if normalize else 1.0
    shares = [weight / scale for weight in context.weights]
    return weighted_sum(tensors, shares, sum_dtype(context, shares, total=sum(shares)))
