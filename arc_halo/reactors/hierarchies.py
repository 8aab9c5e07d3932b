"""The topology `hierarchical`: members in the order of their interactions, each doing its part.

    from A to B       what happens
    feeds_into        B is asked with A's answers beside the input
    augments          A's answer is fused into B's, with the edge's weight
    validates         A judges B's answer, and B's weight is multiplied by what comes of it
    corrects          A is asked with B's answer, and what it answers stands in its place

What no other member takes up is fused by the reactor's strategy in the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from graphlib import TopologicalSorter
from typing import Any

from arc_halo.errors import ReactorError
from arc_halo.manifest.documents import InteractionSpec
from arc_halo.outputs import Outputs, joined
from arc_halo.reactors.asking import Asked
from arc_halo.reactors.judging import each_answer, judgement, questions_about
from arc_halo.reactors.plans import Member, ReactorPlan
from arc_halo.reactors.policies import Voice, check_quorum, voices
from arc_halo.reactors.topologies import Answered, Run, questions

TAKEN_UP = ("feeds_into", "augments")
"""Interactions whose source has its say through the other member."""


def hierarchical(run: Run) -> Answered:
    """Members generation by generation; those of one generation at once."""
    state = _State(run)
    for generation in generations(run.plan):
        state.ask([run.plan.member(name) for name in generation])
    heard = state.heard()
    check_quorum(run.plan, heard, len(run.inputs), run.asked)
    return Answered(outputs=run.fuser.fuse(heard, run.inputs))


def generations(plan: ReactorPlan) -> Iterator[list[str]]:
    """The members in the order in which they can be asked: each after those it waits for."""
    sorter: TopologicalSorter[str] = TopologicalSorter(
        {member.model: set() for member in plan.members}
    )
    for edge in plan.interactions:
        sorter.add(edge.second, edge.first)
    sorter.prepare()
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=[m.model for m in plan.members].index)
        yield ready
        sorter.done(*ready)


@dataclass(slots=True)
class _State:
    """Who has answered so far, and what has become of it. A member that is gone has no voice."""

    run: Run
    voices: dict[str, Voice] = field(default_factory=dict)

    def ask(self, members: Sequence[Member]) -> None:
        """Ask members at once, those that look back about each answer that they look at."""
        plain = [each for each in members if not self._edges(each.model, ("validates", "corrects"))]
        self._ask_plain(plain)
        for member in members:
            for edge in self._edges(member.model, ("validates", "corrects")):
                self._look_back(member, edge)

    def heard(self) -> list[Voice]:
        """The voices that nobody has taken up. Raises `ReactorError` where there is none."""
        found = []
        for name, voice in self.voices.items():
            rest = [i for i in voice.asked.indexes if i not in self._taken_up(name)]
            if rest and self.run.plan.member(name).role != "validator":
                found.append(voice if len(rest) == len(voice.asked.indexes) else voice.part(rest))
        if not found:
            raise ReactorError(f"{self.run.plan.name}: no member answered")
        return found

    def _taken_up(self, name: str) -> set[int]:
        """The inputs of which another member has taken a member's answer up."""
        return {
            index
            for edge in self.run.plan.interactions
            if edge.source == name and edge.kind in TAKEN_UP and edge.target in self.voices
            for index in self.voices[edge.target].asked.indexes
        }

    def _edges(self, source: str, kinds: Iterable[str]) -> list[InteractionSpec]:
        return [
            each
            for each in self.run.plan.interactions
            if each.source == source and each.kind in tuple(kinds)
        ]

    def _ask_plain(self, members: Sequence[Member]) -> None:
        run = self.run
        together = [each for each in members if not self._fed(each)]
        calls = run.ask(questions(together, run.inputs)) if together else []
        heard = voices(run.plan, calls, run.ask_one)
        for member in members:
            if fed := self._fed(member):
                given = self._given(fed)
                ask_one = partial(self._ask_given, given)
                heard += voices(run.plan, run.ask(questions([member], run.inputs), given), ask_one)
        for voice in heard:
            self.voices[voice.member.model] = self._augmented(voice)

    def _ask_given(self, given: Sequence[Any], member: Member, indexes: Sequence[int]) -> Asked:
        return self.run.ask([(member, indexes)], given)[0]

    def _fed(self, member: Member) -> list[tuple[InteractionSpec, Voice]]:
        """What feeds into a member, as far as it was answered."""
        return [
            (edge, self.voices[edge.source])
            for edge in self.run.plan.interactions
            if edge.kind == "feeds_into"
            and edge.target == member.model
            and edge.source in self.voices
        ]

    def _given(self, fed: Sequence[tuple[InteractionSpec, Voice]]) -> list[Any]:
        """The inputs with the answers of others beside them."""
        answers: list[list[dict[str, Any]]] = [[] for _ in self.run.inputs]
        for edge, voice in fed:
            told = zip(voice.asked.indexes, each_answer(voice.asked), strict=True)
            for index, answer in told:
                answers[index].append(
                    {"model": edge.source, "kind": edge.kind, "weight": edge.weight,
                     "answer": answer}
                )  # fmt: skip
        return [
            {**_as_mapping(each), "answers": told} if told else each
            for each, told in zip(self.run.inputs, answers, strict=True)
        ]

    def _augmented(self, voice: Voice) -> Voice:
        """A member's answers, fused with those that augment it; its own counts as 1."""
        added = [
            replace(self.voices[edge.source], weight=edge.weight)
            for edge in self.run.plan.interactions
            if edge.kind == "augments"
            and edge.target == voice.member.model
            and edge.source in self.voices
        ]
        if not added:
            return voice
        indexes = voice.asked.indexes
        own = replace(voice, weight=1.0)
        parts = [each.part([i for i in indexes if i in each.asked.indexes]) for each in added]
        outputs = self._fuse_part([own, *parts], indexes)
        return replace(voice, asked=replace(voice.asked, outputs=outputs))

    def _fuse_part(self, found: Sequence[Voice], indexes: Sequence[int]) -> Outputs:
        """Fuse voices as if the inputs that they are of were all there are."""
        places = {index: place for place, index in enumerate(indexes)}
        moved = [
            replace(
                each,
                asked=replace(each.asked, indexes=tuple(places[i] for i in each.asked.indexes)),
            )
            for each in found
        ]
        return self.run.fuser.fuse(moved, [self.run.inputs[index] for index in indexes])

    def _look_back(self, member: Member, edge: InteractionSpec) -> None:
        voice = self.voices.get(edge.target)
        mine = {i for _, indexes in questions([member], self.run.inputs) for i in indexes}
        looked_at = [i for i in voice.asked.indexes if i in mine] if voice is not None else []
        if voice is None or not looked_at:
            return
        part = voice.part(looked_at)
        given = questions_about(self.run, part.asked)
        places = list(range(len(given)))

        def ask(asked: Member, _: Sequence[int]) -> Asked:
            return self.run.ask([(asked, places)], given, looked_at)[0]

        heard = voices(self.run.plan, [ask(member, places)], ask)
        if not heard:
            return
        (back,) = heard
        if edge.kind == "validates":
            self.voices[edge.target] = _judged(voice, looked_at, back, edge.weight)
        else:
            corrected = self._corrected(part, back, edge.weight)
            self.voices[edge.target] = _replaced(voice, corrected)

    def _corrected(self, voice: Voice, back: Voice, weight: float) -> Voice:
        """The correction in the place of the answer; of scores both, by the edge's weight."""
        outputs, said = back.asked.outputs, voice.asked.outputs
        assert outputs is not None
        assert said is not None
        if weight != 1 and outputs.scores is not None and said.scores is not None:
            own = replace(voice, weight=1 - weight, factors=None)
            other = replace(
                back, weight=weight, asked=replace(back.asked, indexes=voice.asked.indexes)
            )
            outputs = self._fuse_part([own, other], voice.asked.indexes)
        return replace(voice, asked=replace(voice.asked, outputs=outputs))


def _judged(voice: Voice, looked_at: Sequence[int], back: Voice, weight: float) -> Voice:
    """The voice, its weight less what the validator finds wrong with each answer it looked at."""
    judged = (1 - weight + weight * judgement(back.asked)).tolist()
    found = dict(zip(looked_at, judged, strict=True))
    before = voice.factors or (1.0,) * len(voice.asked.indexes)
    factors = [
        factor * found.get(index, 1.0)
        for index, factor in zip(voice.asked.indexes, before, strict=True)
    ]
    return replace(voice, factors=tuple(factors))


def _replaced(voice: Voice, part: Voice) -> Voice:
    """The voice with some of its answers replaced; forms that not all have then are left out."""
    assert part.asked.outputs is not None
    if part.asked.indexes == voice.asked.indexes:
        return replace(voice, asked=replace(voice.asked, outputs=part.asked.outputs))
    places = {index: place for place, index in enumerate(voice.asked.indexes)}
    rest = [index for index in voice.asked.indexes if index not in part.asked.indexes]
    outputs = joined(
        [
            ([places[index] for index in rest], voice.answers(rest)),
            ([places[index] for index in part.asked.indexes], part.asked.outputs),
        ],
        len(places),
    )
    return replace(voice, asked=replace(voice.asked, outputs=outputs))


def _as_mapping(given: Any) -> dict[str, Any]:
    return dict(given) if isinstance(given, dict) else {"input": given}
