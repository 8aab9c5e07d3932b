"""The strategy `rank_fusion`: reciprocal rank fusion of rankings, or of scores by class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.errors import OutputError
from arc_halo.hookspecs import hookimpl
from arc_halo.outputs import CombineContext, Outputs
from arc_halo.strategies._answers import alike_columns, shares
from arc_halo.strategies._schemas import number, schema
from arc_halo.types import FusionStrategy

if TYPE_CHECKING:
    from arc_halo.outputs import Float64

K = number("How little the first ranks count more than those that follow.", 60, exclusiveMinimum=-1)


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="rank_fusion",
        version=1,
        summary="rankings fused by reciprocal ranks, or scores by their ranks",
        combine_outputs=rank_fusion,
        params_schema=schema(k=K),
        numerics="exact",
        is_symmetric=True,
    )


def rank_fusion(outputs: Sequence[Outputs], context: CombineContext, *, k: float) -> Outputs:
    """Things by the sum of w_m / (k + r_m), where r_m is their rank in m's answer, from 1 on.

    Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual
    rank learning methods", SIGIR 2009, with k = 60. A member adds nothing to what it does not
    rank; equals go by their names. Of scores the largest has rank 1, and equal ones the same.
    Raises `OutputError` for members without rankings, unless all have scores for the same columns.
    """
    shares(context)  # weights that count nothing would leave an order of names
    if all(each.rankings is not None for each in outputs):
        return Outputs(rankings=_rankings(outputs, context, k))
    total: Float64 | None = None
    for weight, scores in zip(context.weights, alike_columns(outputs, context), strict=True):
        part = weight / (k + _ranks(scores))
        total = part if total is None else total + part
    return Outputs(scores=total, meaning="scores", classes=outputs[0].classes)


def _rankings(
    outputs: Sequence[Outputs], context: CombineContext, k: float
) -> tuple[tuple[str, ...], ...]:
    fused = []
    for index in range(len(outputs[0])):
        sums: dict[str, float] = {}
        for member, weight, each in zip(context.members, context.weights, outputs, strict=True):
            assert each.rankings is not None
            ranking = each.rankings[index]
            if len(set(ranking)) < len(ranking):
                raise OutputError(f"{member} ranks something twice for input {index}")
            for rank, thing in enumerate(ranking, 1):
                sums[thing] = sums.get(thing, 0.0) + weight / (k + rank)
        fused.append(tuple(sorted(sums, key=lambda thing: (-sums[thing], thing))))
    return tuple(fused)


def _ranks(scores: Float64) -> Float64:
    """Of each score in its row one more than how many are larger."""
    import numpy as np

    places = np.sort(-scores, axis=1)
    ranks = [
        np.searchsorted(row, -each, side="left") for row, each in zip(places, scores, strict=True)
    ]
    return np.array(ranks, np.float64).reshape(scores.shape) + 1
