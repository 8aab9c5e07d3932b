"""The strategy `voting`: each member's decision is a vote, or its probabilities are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.errors import OutputError
from arc_halo.hookspecs import hookimpl
from arc_halo.outputs import CombineContext, Label, Outputs
from arc_halo.strategies._answers import (
    alike_columns,
    decided,
    in_order,
    probabilities,
    votes_of,
)
from arc_halo.strategies._schemas import choice, schema
from arc_halo.types import FusionStrategy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from arc_halo.outputs import Float64

    Places = NDArray[np.intp]

KIND = choice(
    "What is counted: decisions, each for one class (hard), or probabilities (soft).",
    "hard",
    "soft",
)
TIES = choice(
    "Who wins of equals: the class that sorts first (as scikit-learn has it), the one that the "
    "primary member decides for, or that the earliest member does.",
    "first_class",
    "primary",
    "first_member",
)


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="voting",
        version=1,
        summary="the class that most members decide for, or that is likeliest on average",
        combine_outputs=voting,
        params_schema=schema(kind=KIND, ties=TIES),
    )


def voting(outputs: Sequence[Outputs], context: CombineContext, *, kind: str, ties: str) -> Outputs:
    """The class of the largest sum of w_m [m decides for it] (hard), or of w_m p_m (soft).

    As scikit-learn's VotingClassifier has it, ties with `first_class` included: sums are in the
    order of the members. A member decides by its label, else for its best score. Scores are each
    class's share, where the members have columns for all classes; `confidence` is the winner's.
    Raises `OutputError` for weights below 0, and for answers that decide nothing.
    """
    weights = votes_of(context)
    votes = [decided(each, name) for name, each in zip(context.members, outputs, strict=True)]
    columns = _columns(outputs, context, is_needed=kind == "soft")
    labels = columns or in_order([label for each in votes for label in each])
    if not labels:
        return Outputs(labels=())
    places = _places(votes, labels, context)
    if kind == "soft":
        scores = tally = _averages(outputs, context)
    else:
        tally = _counts(places, weights, len(labels))
        scores = tally / sum(weights)  # which might round votes to a tie
    winners = _winners(tally, _sorted_places(labels), places, _preferred(ties, context))
    return Outputs(
        scores=scores if columns else None,
        classes=outputs[0].classes if columns else None,
        labels=tuple(labels[place] for place in winners.tolist()),
        confidence=scores[range(len(winners)), winners].clip(max=1.0),
    )


def _columns(
    outputs: Sequence[Outputs], context: CombineContext, *, is_needed: bool
) -> list[Label] | None:
    """What the members' columns stand for; None where some have none, or others."""
    try:
        width = alike_columns(outputs, context)[0].shape[1]
    except OutputError:
        if is_needed:
            raise
        return None
    return [*range(width)] if outputs[0].classes is None else list(outputs[0].classes)


def _places(
    votes: Sequence[Sequence[Label]], labels: Sequence[Label], context: CombineContext
) -> Places:
    """Of each member's vote on each input the place among the labels."""
    import numpy as np

    known = {label: place for place, label in enumerate(labels)}
    for member, each in zip(context.members, votes, strict=True):
        if strange := [label for label in each if label not in known]:
            raise OutputError(f"{member} decides for {strange[0]!r}, which is none of its classes")
    return np.array([[known[label] for label in each] for each in votes], np.intp)


def _counts(places: Places, weights: Sequence[float], width: int) -> Float64:
    import numpy as np

    tally = np.zeros((places.shape[1], width))
    for each, weight in zip(places, weights, strict=True):
        tally[range(len(each)), each] += weight
    return tally


def _averages(outputs: Sequence[Outputs], context: CombineContext) -> Float64:
    """Multiplied, added up and divided in the order of numpy's `average`, for the same ties."""
    total: Float64 | None = None
    for member, weight, each in zip(context.members, context.weights, outputs, strict=True):
        part = probabilities(each, member) * weight
        total = part if total is None else total + part
    assert total is not None
    return total / sum(context.weights)


def _sorted_places(labels: Sequence[Label]) -> list[int]:
    places = {label: place for place, label in enumerate(labels)}
    return [places[label] for label in in_order(labels)]


def _preferred(ties: str, context: CombineContext) -> list[int]:
    """The members whose vote decides among equals, the first that is for one of them."""
    if ties == "primary":
        return [place for place, role in enumerate(context.roles) if role == "primary"]
    return list(range(len(context.members))) if ties == "first_member" else []


def _winners(
    tally: Float64, order: Sequence[int], places: Places, preferred: Sequence[int]
) -> Places:
    import numpy as np

    is_best = tally == tally.max(axis=1, keepdims=True)
    winners: Places = np.array(order, np.intp)[is_best[:, order].argmax(axis=1)]
    rows = np.arange(len(winners))
    for member in reversed(preferred):
        winners = np.where(is_best[rows, places[member]], places[member], winners)
    return winners
