"""A reactor held against labelled inputs: accuracy, calibration, and who agrees with whom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arc_halo.errors import ReactorError
from arc_halo.outputs import Outputs
from arc_halo.reactors.cascades import best_probability
from arc_halo.reactors.measuring import decided
from arc_halo.reactors.records import spelt
from arc_halo.reactors.running import Answer, RunningReactor
from arc_halo.types import JsonObject

BATCH = 256
BINS = 15
"""Of the calibration error, as in Guo et al. (2017)."""

FUSED = "fused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well one answers: of `asked` inputs, those decided rightly.

    `calibration_error` and `log_loss` are there where answers are probabilities.
    """

    asked: int
    right: int
    calibration_error: float | None = None
    log_loss: float | None = None

    @property
    def accuracy(self) -> float | None:
        return self.right / self.asked if self.asked else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The scores of each member and of the fused answer, and the agreement of every two members.

    `agreement` has the share of inputs that both were asked and decided alike. `failed` counts
    batches that a member did not answer.
    """

    inputs: int
    scores: Mapping[str, Score]
    agreement: Mapping[tuple[str, str], float]
    cost: float
    failed: Mapping[str, int]

    def as_json(self) -> JsonObject:
        return {
            "inputs": self.inputs,
            "cost": self.cost,
            "scores": {
                name: {
                    "asked": each.asked,
                    "accuracy": each.accuracy,
                    "calibration_error": each.calibration_error,
                    "log_loss": spelt(each.log_loss),
                }
                for name, each in self.scores.items()
            },
            "agreement": [
                {"members": list(pair), "share": share} for pair, share in self.agreement.items()
            ],
            "failed": dict(self.failed),
        }


@dataclass(slots=True)
class _Tally:
    """What one has answered so far: decisions by input, and how probable it held the truth."""

    decisions: dict[int, Any] = field(default_factory=dict)
    sure: list[tuple[float, bool]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, indexes: Sequence[int], outputs: Outputs, labels: Sequence[Any]) -> None:
        found = decided(outputs)
        if found is None:
            return
        self.decisions.update(zip(indexes, found, strict=True))
        if outputs.scores is None or outputs.meaning not in ("probabilities", "logits"):
            return
        best = best_probability(outputs).tolist()
        right = [answer == labels[index] for index, answer in zip(indexes, found, strict=True)]
        self.sure += zip(best, right, strict=True)
        self.losses += _losses(outputs, [labels[index] for index in indexes])

    def score(self, labels: Sequence[Any]) -> Score:
        right = sum(answer == labels[index] for index, answer in self.decisions.items())
        return Score(
            asked=len(self.decisions),
            right=right,
            calibration_error=calibration_error(self.sure) if self.sure else None,
            log_loss=float(np.mean(self.losses)) if self.losses else None,
        )


def evaluate(
    reactor: RunningReactor, inputs: Sequence[Any], labels: Sequence[Any], *, batch: int = BATCH
) -> Evaluation:
    """Ask a reactor labelled inputs, some at a time; nothing of it is recorded but the figures.

    Raises what a run raises, and `ReactorError` for answers that decide nothing.
    """
    tallies: dict[str, _Tally] = {}
    failed: dict[str, int] = {}
    cost = 0.0
    for start in range(0, len(inputs), batch):
        indexes = range(start, min(start + batch, len(inputs)))
        answer = reactor.ask([inputs[index] for index in indexes])
        cost += answer.cost
        _tally(tallies, failed, answer, indexes, labels)
    voters = [member.model for member in reactor.plan.voters]
    listed = [name for name in [*voters, FUSED] if name in tallies]
    if not any(tallies[name].decisions for name in listed):
        raise ReactorError(
            f"{reactor.plan.name}: its answers decide nothing, and cannot be held against labels"
        )
    return Evaluation(
        inputs=len(inputs),
        scores={name: tallies[name].score(labels) for name in listed},
        agreement=_agreement({name: tallies[name].decisions for name in listed if name != FUSED}),
        cost=cost,
        failed=failed,
    )


def _tally(
    tallies: dict[str, _Tally],
    failed: dict[str, int],
    answer: Answer,
    indexes: Sequence[int],
    labels: Sequence[Any],
) -> None:
    for asked in answer.members:
        name = asked.member.model
        if asked.outputs is None:
            failed[name] = failed.get(name, 0) + 1
        elif asked.member.role != "validator":
            places = [indexes[place] for place in asked.indexes]
            tallies.setdefault(name, _Tally()).add(places, asked.outputs, labels)
    if answer.outputs is not None:
        tallies.setdefault(FUSED, _Tally()).add(list(indexes), answer.outputs, labels)


def calibration_error(sure: Sequence[tuple[float, bool]], bins: int = BINS) -> float:
    """The expected calibration error of (confidence, whether right) pairs, in equal bins.

    The sum over bins of |accuracy - mean confidence|, weighted by their share of answers; a bin
    has its upper bound, the first one zero too (C. Guo et al., "On calibration of modern neural
    networks", ICML 2017).
    """
    confidence = np.array([each for each, _ in sure])
    right = np.array([each for _, each in sure], float)
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    gaps = np.abs(
        np.bincount(places, confidence, minlength=bins) - np.bincount(places, right, minlength=bins)
    )
    return float(gaps.sum() / counts.sum())


def _losses(outputs: Outputs, labels: Sequence[Any]) -> list[float]:
    """Minus the logarithm of what each true label was held for; infinite where it was ruled out."""
    scores = outputs.scores
    assert scores is not None
    columns = outputs.classes or tuple(range(scores.shape[1]))
    places = {label: place for place, label in enumerate(columns)}
    if any(label not in places for label in labels):
        return []
    picked = scores[np.arange(len(labels)), [places[label] for label in labels]]
    if outputs.meaning == "logits":
        top = scores.max(axis=1)
        losses = top + np.log(np.exp(scores - top[:, None]).sum(axis=1)) - picked
        return [float(each) for each in losses]
    return [-math.log(each) if each > 0 else math.inf for each in picked.tolist()]


def _agreement(decisions: Mapping[str, Mapping[int, Any]]) -> dict[tuple[str, str], float]:
    found = {}
    names = list(decisions)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            both = decisions[one].keys() & decisions[other].keys()
            if both:
                alike = sum(decisions[one][index] == decisions[other][index] for index in both)
                found[one, other] = alike / len(both)
    return found
