"""Ensembles token by token: the members' logits are fused, a token is chosen, and all go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.errors import OutputError, ReactorError
from arc_halo.outputs import Outputs
from arc_halo.reactors.asking import Asked, Panel
from arc_halo.reactors.plans import Member, ReactorPlan
from arc_halo.reactors.policies import Voice, check_quorum, voices
from arc_halo.reactors.topologies import Answered, Run, questions
from arc_halo.runners.generating import Continued, Text, log_softmax, prompt_tokens, write, written
from arc_halo.types import TokenModel, token_model

if TYPE_CHECKING:
    from arc_halo.outputs import Float64


def answer(run: Run) -> Answered:
    """Whole texts, written by all members together."""
    writing = generate(run)
    while True:
        try:
            next(writing)
        except StopIteration as done:
            answered: Answered = done.value
            return answered


def generate(run: Run) -> Generator[list[str], None, Answered]:
    """The same, as it is written: of each step, what is new of each text.

    A member that fails is left out from then on, or another stands in for it, as the policy says.
    `run.timeout` is for all that a member does. What the run has of each member is its own choice
    at every place, and how likely it finds what was chosen.
    """
    writing = _Writing(run)
    try:
        yield from write(writing.texts, run.plan.decoding, writing.logits_of, writing.note)
    finally:
        run.asked += writing.asked()
    return Answered(outputs=written(writing.texts))


def token_models(plan: ReactorPlan, panel: Panel) -> dict[str, TokenModel]:
    """The members that vote, and who may stand in for one, at the level of tokens.

    Raises `ReactorError` for a member without that level, and for vocabularies that differ.
    """
    members = [*plan.voters, *(m for m in plan.validators if m.model == plan.fallback)]
    found: dict[str, TokenModel] = {}
    for member in members:
        tokens = token_model(panel.running(member))
        if tokens is None:
            raise ReactorError(
                f"{plan.name}: {member.model} has no tokens to fuse",
                hint="have it run by `transformers`, or by a runner that gives tokens",
            )
        found[member.model] = tokens
    first, *others = found
    for name in others:
        if found[name].vocabulary != found[first].vocabulary:
            raise ReactorError(
                f"{plan.name}: {first} and {name} have other vocabularies: "
                f"{found[first].vocabulary}, and {found[name].vocabulary}",
                hint="fuse tokens of models that share a tokenizer; whole answers of any",
            )
    return found


def logits_of(fused: Outputs, size: int, reactor: str) -> Float64:
    """Fused scores by which a token can be chosen: logits, or logarithms of probabilities."""
    if fused.scores is not None and fused.scores.shape[1] == size:
        if fused.meaning == "logits":
            return fused.scores
        if fused.meaning == "probabilities":
            with np.errstate(divide="ignore"):
                return np.log(fused.scores)
    said = fused.meaning if fused.scores is not None else fused.kinds[0]
    raise OutputError(
        f"{reactor}: its strategy makes {said} of logits, by which no token can be chosen",
        hint="take one that gives logits or probabilities, such as weighted_average",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prefix:
    """A text as far as it is written, its prompt included."""

    row: int
    tokens: Sequence[int]


class _Follower:
    """A member, asked for the logits of what follows texts; it keeps what it has read of them."""

    def __init__(self, model: TokenModel) -> None:
        self._read = Continued(model)

    def answer(self, inputs: Sequence[_Prefix]) -> Outputs:
        rows = [each.row for each in inputs]
        logits = self._read.logits(rows, [each.tokens for each in inputs])
        return Outputs(scores=logits, meaning="logits")


@dataclass(slots=True)
class _Tally:
    """What a member would have written, and how likely it found what was, by text."""

    seconds: float = 0.0
    picks: dict[int, list[int]] = field(default_factory=dict)
    nats: dict[int, list[float]] = field(default_factory=dict)

    def add(self, row: int, pick: int, nats: float) -> None:
        self.picks.setdefault(row, []).append(pick)
        self.nats.setdefault(row, []).append(nats)


class _Writing:
    """The texts of a run, and the members that write them."""

    def __init__(self, run: Run) -> None:
        plan, decoding = run.plan, run.plan.decoding
        models = token_models(plan, run.panel)
        self._run = run
        self._first_name, self._first = next(iter(models.items()))
        with run.panel.naming_failures(self._first_name):
            self._prompts = [prompt_tokens(self._first, each) for each in run.inputs]
        lengths = [each.context_length for each in models.values()]
        self.texts = [
            Text(
                self._decode,
                frozenset().union(*(each.end_tokens for each in models.values())),
                decoding,
                prompt_count=len(prompt),
                context_length=min((each for each in lengths if each is not None), default=None),
            )
            for prompt in self._prompts
        ]
        self._panel = run.panel.asking({name: _Follower(each) for name, each in models.items()})
        self._rows = [
            (member, frozenset(indexes)) for member, indexes in questions(plan.voters, run.inputs)
        ]
        self._failed: dict[str, Asked] = {}
        self._tallies: dict[str, _Tally] = {}
        self._answers: Sequence[Asked] = ()

    def _decode(self, tokens: Sequence[int]) -> str:
        with self._run.panel.naming_failures(self._first_name):
            return self._first.decode(tokens)

    def logits_of(self, rows: Sequence[int]) -> Float64:
        """Of what follows these texts, by all members that have not failed."""
        run = self._run
        prefixes = [
            _Prefix(row=row, tokens=[*self._prompts[row], *self.texts[row].tokens]) for row in rows
        ]
        heard = self._heard(prefixes)
        check_quorum(run.plan, heard, len(prefixes), list(self._failed.values()))
        fused = run.fuser.fuse(heard, [run.inputs[row] for row in rows])
        return logits_of(fused, self._first.vocabulary.size, run.plan.name)

    def note(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Take down what each member makes of the tokens that were chosen."""
        seen = set()
        for each in self._answers:
            assert each.outputs is not None
            assert each.outputs.scores is not None
            nats = log_softmax(each.outputs.scores)
            tally = self._tallies[each.member.model]
            for place, index in enumerate(each.indexes):
                # Who stands in for another may have been asked twice.
                if (each.member.model, index) not in seen:
                    seen.add((each.member.model, index))
                    pick = int(nats[place].argmax())
                    tally.add(rows[index], pick, float(nats[place, tokens[index]]))

    def asked(self) -> list[Asked]:
        """What came of each member over the whole run."""
        return [
            _whole(member, self._tallies[member.model], self._failed, self._decode)
            for member in self._run.plan.members
            if member.model in self._tallies
        ]

    def _heard(self, prefixes: Sequence[_Prefix]) -> list[Voice]:
        answered: list[Asked] = []
        failed: list[Asked] = []
        asking = []
        for member, rows in self._rows:
            indexes = tuple(place for place, each in enumerate(prefixes) if each.row in rows)
            known = self._failed.get(member.model)
            if indexes and known is None:
                asking.append((member, indexes))
            elif indexes and known is not None:
                failed.append(Asked(member=member, indexes=indexes, error=known.error))
        for each in self._ask(asking, prefixes):
            (answered if each.error is None else failed).append(each)
        extra: list[Asked] = []

        def ask_one(member: Member, indexes: Sequence[int]) -> Asked:
            extra.extend(self._ask([(member, tuple(indexes))], prefixes))
            return extra[-1]

        heard = voices(self._run.plan, [*answered, *failed], ask_one)
        places = {member.model: place for place, (member, _) in enumerate(self._rows)}
        self._answers = [each for each in (*answered, *extra) if each.outputs is not None]
        return sorted(heard, key=lambda voice: places[voice.member.model])

    def _ask(
        self, asking: Sequence[tuple[Member, Sequence[int]]], prefixes: Sequence[_Prefix]
    ) -> list[Asked]:
        timeout, deadlines = self._run.plan.timeout_seconds, None
        tallies = [self._tallies.setdefault(member.model, _Tally()) for member, _ in asking]
        if timeout is not None:
            now = time.monotonic()
            deadlines = [now + timeout - tally.seconds for tally in tallies]
        found = self._panel.ask(asking, prefixes, timeout, deadlines)
        for each in found:
            self._tallies[each.member.model].seconds += each.seconds
            if each.error is not None:
                self._failed.setdefault(each.member.model, each)
        return found


def _whole(
    member: Member,
    tally: _Tally,
    failed: Mapping[str, Asked],
    decode: Callable[[Sequence[int]], str],
) -> Asked:
    rows = tuple(sorted(tally.picks))
    failure = failed.get(member.model)
    if failure is not None:
        return Asked(member=member, indexes=rows, error=failure.error, seconds=tally.seconds)
    outputs = Outputs(
        texts=tuple(decode(tally.picks[row]) for row in rows),
        confidence=np.exp([min(0.0, float(np.mean(tally.nats[row]))) for row in rows]),
    )
    return Asked(member=member, indexes=rows, outputs=outputs, seconds=tally.seconds)
