"""A reactor held against labelled inputs: accuracy, calibration, and who agrees with whom."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arc_halo.errors import InvalidInputError, ReactorError
from arc_halo.outputs import Label, Outputs
from arc_halo.reactors.cascades import best_probability
from arc_halo.reactors.measuring import decided, decides_by_text
from arc_halo.reactors.records import spelt
from arc_halo.reactors.running import Answer, RunningReactor
from arc_halo.types import JsonObject

BATCH = 256
BINS = 15
"""Of the calibration error, as in Guo et al. (2017)."""

FUSED = "fused"
LISTED = 10
"""Classes that an error lists."""


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

    answer_of: Callable[[str], str]
    decisions: dict[int, Any] = field(default_factory=dict)
    right_count: int = 0
    sure: list[tuple[float, bool]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, indexes: Sequence[int], outputs: Outputs, labels: Sequence[Label]) -> None:
        """Answers to some inputs, and their labels."""
        found = decided(outputs, self.answer_of)
        if found is None:
            return
        self.decisions.update(zip(indexes, found, strict=True))
        truths = [self._said(each) for each in labels] if decides_by_text(outputs) else labels
        right = [answer == truth for answer, truth in zip(found, truths, strict=True)]
        self.right_count += sum(right)
        if outputs.scores is None or outputs.meaning not in ("probabilities", "logits"):
            return
        self.sure += zip(best_probability(outputs).tolist(), right, strict=True)
        self.losses += _losses(outputs, labels)

    def score(self) -> Score:
        return Score(
            asked=len(self.decisions),
            right=self.right_count,
            calibration_error=calibration_error(self.sure) if self.sure else None,
            log_loss=float(np.mean(self.losses)) if self.losses else None,
        )

    def _said(self, label: Label) -> str:
        """The label as an answer in words: a number as JSON writes it."""
        return self.answer_of(label if isinstance(label, str) else json.dumps(label))


def evaluate(
    reactor: RunningReactor, inputs: Sequence[Any], labels: Sequence[Label], *, batch: int = BATCH
) -> Evaluation:
    """Ask a reactor labelled inputs, some at a time; nothing of it is recorded but the figures.

    Raises what a run raises, `ReactorError` for answers that decide nothing, and
    `InvalidInputError` for a label that no answer can be.
    """
    plan, answer_of = reactor.plan, reactor.fuser.answer_of
    tallies: dict[str, _Tally] = {}
    failed: dict[str, int] = {}
    cost = 0.0
    for start in range(0, len(inputs), batch):
        indexes = range(start, min(start + batch, len(inputs)))
        answer = reactor.ask([inputs[index] for index in indexes])
        cost += answer.cost
        _check_labels(plan.name, answer, indexes, labels)
        for name, places, outputs in _answers(answer, indexes):
            tally = tallies.setdefault(name, _Tally(answer_of))
            tally.add(places, outputs, [labels[index] for index in places])
        for asked in answer.members:
            if asked.outputs is None:
                failed[asked.member.model] = failed.get(asked.member.model, 0) + 1
    voters = [member.model for member in plan.voters]
    listed = [name for name in [*voters, FUSED] if name in tallies]
    if not any(tallies[name].decisions for name in listed):
        raise ReactorError(
            f"{plan.name}: its answers decide nothing, and cannot be held against labels"
        )
    return Evaluation(
        inputs=len(inputs),
        scores={name: tallies[name].score() for name in listed},
        agreement=_agreement({name: tallies[name].decisions for name in listed if name != FUSED}),
        cost=cost,
        failed=failed,
    )


def _answers(
    answer: Answer, indexes: Sequence[int]
) -> Iterator[tuple[str, Sequence[int], Outputs]]:
    """Who answered which inputs, and what: the members but validators, and the reactor."""
    for asked in answer.members:
        if asked.outputs is not None and asked.member.role != "validator":
            yield asked.member.model, [indexes[place] for place in asked.indexes], asked.outputs
    if answer.outputs is not None:
        yield FUSED, indexes, answer.outputs


def _check_labels(
    reactor: str, answer: Answer, indexes: Sequence[int], labels: Sequence[Label]
) -> None:
    """Refuse a label that is nobody's class, and one of another type than all that was decided."""
    classes: set[Label] = set()
    are_texts: set[bool] = set()
    for _, _, outputs in _answers(answer, indexes):
        if decides_by_text(outputs):
            return
        if outputs.scores is not None and outputs.meaning != "vectors":
            classes |= {*_columns(outputs)}
        else:
            are_texts |= {isinstance(each, str) for each in decided(outputs) or ()}
    if not classes and not are_texts:
        return
    for index in indexes:
        label = labels[index]
        if label not in classes and isinstance(label, str) not in are_texts:
            raise _no_class(reactor, index, label, classes)


def _no_class(
    reactor: str, index: int, label: Label, classes: Collection[Label]
) -> InvalidInputError:
    said = f"{reactor}: the label {json.dumps(label)} of input {index} is"
    if not classes:
        wanted = "a number" if isinstance(label, str) else "a text"
        return InvalidInputError(
            f"{said} not {wanted}, as all decisions are",
            hint="write labels as the members do; `arc-halo reactor run` shows how",
            code="AH006",
        )
    listed = [json.dumps(each) for each in _in_order(classes)]
    alike = next((each for each in classes if str(each) == str(label)), None)
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return InvalidInputError(
        f"{said} none of the classes: {', '.join(listed[:LISTED])}{more}",
        hint="leave out inputs that no member can get right"
        if alike is None
        else f"write it as the class is: {json.dumps(alike)}",
        code="AH006",
    )


def _in_order(labels: Collection[Label]) -> list[Label]:
    """Numbers as they count, then texts."""
    return sorted(labels, key=lambda each: (isinstance(each, str), each))


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
    places = {label: place for place, label in enumerate(_columns(outputs))}
    if any(label not in places for label in labels):
        return []
    picked = scores[np.arange(len(labels)), [places[label] for label in labels]]
    if outputs.meaning == "logits":
        top = scores.max(axis=1)
        losses = top + np.log(np.exp(scores - top[:, None]).sum(axis=1)) - picked
        return [float(each) for each in losses]
    return [-math.log(each) if each > 0 else math.inf for each in picked.tolist()]


def _columns(outputs: Outputs) -> Sequence[Label]:
    """What the columns of scores stand for."""
    assert outputs.scores is not None
    return outputs.classes or range(outputs.scores.shape[1])


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
