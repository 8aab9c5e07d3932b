"""How well a reactor's language models foretell a text, and their fused logits."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from arc_halo.errors import InvalidInputError, ReactorError
from arc_halo.outputs import Outputs
from arc_halo.reactors.asking import Asked
from arc_halo.reactors.cascades import best_probability
from arc_halo.reactors.evaluations import evaluation
from arc_halo.reactors.plans import Member, ReactorPlan
from arc_halo.reactors.policies import Voice
from arc_halo.reactors.records import spelt
from arc_halo.reactors.running import RunningReactor
from arc_halo.reactors.tokens import logits_of, token_models
from arc_halo.runners.generating import log_softmax
from arc_halo.types import JsonObject, TokenModel

if TYPE_CHECKING:
    from arc_halo.outputs import Float64

WINDOW = 256
HALVES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What a model, or the whole reactor, makes of a text: the mean nats of its tokens."""

    model: str
    loss: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def as_json(self) -> JsonObject:
        found: JsonObject = spelt({"loss": self.loss, "perplexity": self.perplexity})
        return {"model": self.model, **found}


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """The figures of a text: of each member, and of the reactor. None was recorded without an
    `operation_id`. `cost` is what a token costs, of all members that the reactor would ask."""

    members: tuple[Figure, ...]
    fused: Figure
    cost: float
    prediction_count: int
    window: int
    operation_id: UUID | None

    def as_json(self) -> JsonObject:
        return {
            "members": [each.as_json() for each in self.members],
            "fused": self.fused.as_json(),
            "cost": self.cost,
            "predictions": self.prediction_count,
            "window": self.window,
            "operation": str(self.operation_id) if self.operation_id else None,
        }


def perplexity(reactor: RunningReactor, text: str, window: int = WINDOW) -> Perplexity:
    """Measure it on windows of so many tokens, of each of which all but the first are foretold.

    All members that vote are asked everything, whatever their domains. The strategy of an ensemble
    fuses their logits; in a cascade those of the first one count that is sure enough of its
    likeliest token. Log-softmax is taken in float64. Raises `ReactorError` for a reactor of another
    type, and where a member has no tokens or fails, whatever the policy: figures of some members
    would be those of another reactor. And
    `InvalidInputError` for what is no text.
    """
    plan = reactor.plan
    if plan.type not in ("ensemble", "cascade"):
        raise ReactorError(
            f"{plan.name} is of type {plan.type}, which does not foretell one token",
            hint="an ensemble or a cascade foretells a text",
        )
    models = token_models(plan, reactor.panel)
    name, first = next(iter(models.items()))
    _check_text(text, first)
    with reactor.panel.naming_failures(name):
        tokens = first.encode(text)
    windows = _windows(tokens, window)
    count = sum(len(each) - 1 for each in windows)
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    with evaluation(reactor, {"text_sha256": digest, "window": window}, count) as under_way:
        nats, cost = _total_nats(reactor, models, windows)
        *members, fused = (Figure(model=name, loss=each / count) for name, each in nats.items())
        found = Perplexity(
            members=tuple(members),
            fused=fused,
            cost=cost / count,
            prediction_count=count,
            window=window,
            operation_id=under_way.operation_id,
        )
        under_way.output, under_way.cost = found.as_json(), cost
        under_way.members = list(_rows(plan, members, count))
    return found


def _check_text(text: object, model: TokenModel) -> None:
    """Bytes that are no UTF-8 stand in a text as halves of characters, which `bytes` are again."""
    if not isinstance(text, str):
        raise InvalidInputError(
            f"a text is needed, and this is {type(text).__name__}",
            hint="decode it first: `data.decode()`",
            code="AH004",
        )
    if model.vocabulary.tokenizer != "bytes" and HALVES.search(text):
        raise InvalidInputError(
            "the text is not UTF-8, and its members read characters",
            hint="save it as UTF-8 text; only models with `tokenizer: bytes` read any bytes",
            code="AH006",
        )


class _Foreteller:
    """A member, asked for the logits of what follows each token of a window."""

    def __init__(self, model: TokenModel) -> None:
        self._model = model

    def answer(self, inputs: Sequence[int]) -> Outputs:
        return Outputs(scores=self._model.score(inputs), meaning="logits")


def _windows(tokens: Sequence[int], window: int) -> list[Sequence[int]]:
    parts = [tokens[start : start + window] for start in range(0, len(tokens), window)]
    windows = [part for part in parts if len(part) > 1]
    if not windows:
        raise InvalidInputError(
            "a text of two tokens at least is needed, and windows of two", code="AH007"
        )
    return windows


def _total_nats(
    reactor: RunningReactor, models: dict[str, TokenModel], windows: Sequence[Sequence[int]]
) -> tuple[dict[str, float], float]:
    """Of all windows, by member, and of the reactor last; and what all of it costs."""
    plan = reactor.plan
    panel = reactor.panel.asking({name: _Foreteller(each) for name, each in models.items()})
    size = next(iter(models.values())).vocabulary.size
    nats: dict[str, list[float]] = {member.model: [] for member in plan.voters}
    nats[plan.name] = []
    cost = 0.0
    for part in windows:
        given, following = part[:-1], np.asarray(part[1:])
        asked = panel.ask(
            [(member, range(len(given))) for member in plan.voters], given, plan.timeout_seconds
        )
        heard = [_voice(plan, each) for each in asked]
        for each in asked:
            assert each.outputs is not None
            assert each.outputs.scores is not None
            nats[each.member.model].append(_nats(each.outputs.scores, following))
        if plan.type == "cascade":
            fused, part_cost = _cascaded(plan, heard)
        else:
            fused = logits_of(reactor.fuser.fuse(heard, given), size, plan.name)
            part_cost = len(given) * sum(voice.member.cost for voice in heard)
        cost += part_cost
        nats[plan.name].append(_nats(fused, following))
    return {name: math.fsum(each) for name, each in nats.items()}, cost


def _cascaded(plan: ReactorPlan, heard: Sequence[Voice]) -> tuple[Float64, float]:
    """Of each token the logits of the first member that is sure enough, or the last; the cost."""
    found = {voice.member.model: voice.asked.outputs for voice in heard}
    last = plan.ordered[-1]
    outputs = found[last.model]
    assert outputs is not None
    assert outputs.scores is not None
    logits = outputs.scores.copy()
    rest, cost = np.arange(len(logits)), 0.0
    for member in plan.ordered:
        cost += member.cost * len(rest)
        outputs = found[member.model]
        if member is last or outputs is None:
            break
        part = outputs.take(rest.tolist())
        assert part.scores is not None
        is_sure = best_probability(part) >= plan.threshold
        logits[rest[is_sure]] = part.scores[is_sure]
        rest = rest[~is_sure]
    return logits, cost


def _voice(plan: ReactorPlan, asked: Asked) -> Voice:
    if asked.error is not None:
        raise ReactorError(
            f"{plan.name}: {asked.error.message}",
            hint=asked.error.hint,
            code=asked.error.error_code,
        ) from asked.error
    return Voice(member=asked.member, asked=asked, weight=asked.member.weight)


def _nats(logits: Float64, following: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float:
    found = np.take_along_axis(log_softmax(logits), following[:, None], axis=1)
    return float(-found.sum())


def _rows(plan: ReactorPlan, figures: Sequence[Figure], count: int) -> Iterator[JsonObject]:
    by_model = {each.model: each for each in figures}
    for ordinal, member in enumerate(plan.members):
        figure = by_model.get(member.model)
        yield {
            "ordinal": ordinal,
            **_described(member),
            "status": "not_asked" if figure is None else "answered",
            "answered_count": 0 if figure is None else count,
            "output": None if figure is None else figure.as_json(),
        }


def _described(member: Member) -> JsonObject:
    return {
        "model": member.model,
        "root": member.root.hex() if member.root else None,
        "role": member.role,
        "weight": member.weight,
    }
