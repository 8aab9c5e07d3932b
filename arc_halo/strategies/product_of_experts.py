"""The strategy `product_of_experts`: the members' probabilities, multiplied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.errors import OutputError
from arc_halo.hookspecs import hookimpl
from arc_halo.outputs import CombineContext, Outputs
from arc_halo.strategies._answers import alike_columns, log_probabilities, shares, softmax
from arc_halo.strategies._schemas import NORMALIZE, schema
from arc_halo.types import FusionStrategy

if TYPE_CHECKING:
    from arc_halo.outputs import Float64


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="product_of_experts",
        version=1,
        summary="probabilities multiplied, each to the power of its member's weight",
        combine_outputs=product_of_experts,
        params_schema=schema(normalize=NORMALIZE),
        is_symmetric=True,
    )


def product_of_experts(
    outputs: Sequence[Outputs], context: CombineContext, *, normalize: bool
) -> Outputs:
    """The product of p_m to the power of w_m over its sum, for each input, added up as logarithms.

    With weights of 1 it is the product of experts (Hinton, "Training products of experts by
    minimizing contrastive divergence", Neural Computation 14, 2002), which is why weights are
    taken as they are; with `normalize` the logarithmic opinion pool (Genest and Zidek, "Combining
    probability distributions", Statistical Science 1, 1986), of which equal members are a fixed
    point. A class that a member with weight gives no probability has none. Raises `OutputError`
    where no class is left, and for a negative weight on a probability of zero.
    """
    import numpy as np

    total = np.zeros(alike_columns(outputs, context)[0].shape)
    weights = shares(context) if normalize else context.weights
    for member, weight, each in zip(context.members, weights, outputs, strict=True):
        logarithms = log_probabilities(each, member)
        if weight:  # p to the power of 0 is 1; 0 times the logarithm of 0 would be NaN
            with np.errstate(invalid="ignore"):
                total = total + weight * logarithms
    _check(total)
    return Outputs(scores=softmax(total), classes=outputs[0].classes)


def _check(total: Float64) -> None:
    import numpy as np

    if np.isnan(total).any() or np.isposinf(total).any():
        raise OutputError(
            "a negative weight on a probability of 0, which makes it infinite",
            hint="have that member answer with logits, or give it another weight",
        )
    if left := np.flatnonzero(np.isneginf(total).all(axis=1)).tolist():
        raise OutputError(
            f"the members rule out every class of input {left[0]}, each another",
            hint="have them answer with logits, or take weighted_average",
        )
