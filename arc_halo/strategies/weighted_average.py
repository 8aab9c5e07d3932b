"""The strategy `weighted_average`: the members' scores, averaged by their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from arc_halo.hookspecs import hookimpl
from arc_halo.outputs import CombineContext, Outputs
from arc_halo.strategies._answers import alike_scores, shares
from arc_halo.types import FusionStrategy


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="weighted_average",
        version=1,
        summary="scores averaged by the members' weights: probabilities, logits, vectors",
        combine_outputs=weighted_average,
        numerics="exact",
        is_symmetric=True,
    )


def weighted_average(outputs: Sequence[Outputs], context: CombineContext) -> Outputs:
    """The sum of w_m S_m over the sum of w_m, for each input and column, in float64.

    Scores keep their meaning: of probabilities it is the linear opinion pool (Stone, "The opinion
    pool", 1961), of logits the mean of logits. Raises `OutputError` for members whose scores are
    of unlike columns or meanings, and for weights that add up to zero.
    """
    import numpy as np

    scores = alike_scores(outputs, context)
    total = np.zeros(scores[0].shape)
    for share, each in zip(shares(context), scores, strict=True):
        if share:  # nothing times a logit of -inf would be NaN
            with np.errstate(invalid="ignore"):
                total = total + share * each
    first = outputs[0]
    return Outputs(scores=total, meaning=first.meaning, classes=first.classes)
