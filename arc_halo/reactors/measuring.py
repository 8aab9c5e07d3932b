"""What is measured of a run: throughput, latency, coherence and diversity of its members.

Definitions are in the reference of reactors, with their sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.outputs import Outputs
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from arc_halo.reactors.topologies import Run


def metrics_of(run: Run, execution_ms: float) -> list[JsonObject]:
    """Of one run: inputs a second, milliseconds, and how far its members agree."""
    found = {"latency": execution_ms}
    if execution_ms > 0:
        found["throughput"] = 1000 * len(run.inputs) / execution_ms
    count = len(run.inputs)
    whole = [
        each.outputs
        for each in run.asked
        if each.outputs is not None
        and len(each.indexes) == count
        and each.member.role != "validator"
    ]
    if len(whole) > 1 and count:
        decisions = [decided(each, run.fuser.answer_of) for each in whole]
        if all(each is not None for each in decisions):
            found["diversity"] = disagreement([each for each in decisions if each is not None])
            found["coherence"] = 1 - found["diversity"]
    return [{"metric": name, "value": value} for name, value in found.items()]


def decided(
    outputs: Outputs, answer_of: Callable[[str], str] = str.strip
) -> tuple[Any, ...] | None:
    """What is decided for each input: its label, the class of the best score, or its text.

    Of a text it is what `answer_of` says it comes to. None for answers that decide nothing, such
    as vectors.
    """
    if outputs.labels is not None:
        return outputs.labels
    if outputs.scores is not None and outputs.meaning != "vectors":
        best = outputs.scores.argmax(axis=1).tolist()
        classes = outputs.classes
        return tuple(best if classes is None else (classes[place] for place in best))
    if outputs.texts is not None:
        return tuple(answer_of(text) for text in outputs.texts)
    if outputs.rankings is not None:
        return tuple(ranking[0] if ranking else None for ranking in outputs.rankings)
    return None


def decides_by_text(outputs: Outputs) -> bool:
    """Whether it is by texts, which may be any, that inputs are decided."""
    has_scores = outputs.scores is not None and outputs.meaning != "vectors"
    return outputs.labels is None and not has_scores and outputs.texts is not None


def disagreement(decisions: Sequence[Sequence[Any]]) -> float:
    """The mean over pairs of members of the share of inputs that they decide differently.

    The disagreement measure of Skalak (1996), as in Kuncheva and Whitaker, "Measures of diversity
    in classifier ensembles", Machine Learning 51 (2003), with decisions in place of correctness.
    """
    shares = [
        np.mean([a != b for a, b in zip(one, other, strict=True)])
        for one, other in combinations(decisions, 2)
    ]
    return float(np.mean(shares))
