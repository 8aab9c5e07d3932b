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
from graphlib import TopologicalSorter
from typing import Any

from arc_halo.errors import ReactorError
from arc_halo.manifest.documents import InteractionSpec
from arc_halo.outputs import Outputs
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
        taken_up = {
            edge.source
            for edge in self.run.plan.interactions
            if edge.kind in TAKEN_UP and edge.target in self.voices
        }
        found = [
            voice
            for name, voice in self.voices.items()
            if name not in taken_up and self.run.plan.member(name).role != "validator"
        ]
        if not found:
            raise ReactorError(f"{self.run.plan.name}: no member answered")
        return found

    def _edges(self, source: str, kinds: Iterable[str]) -> list[InteractionSpec]:
        return [
            each
            for each in self.run.plan.interactions
            if each.source == source and each.kind in tuple(kinds)
        ]

    def _ask_plain(self, members: Sequence[Member]) -> None:
        run = self.run
        calls: list[Asked] = []
        together = [each for each in members if not self._fed(each)]
        if together:
            calls += run.ask(questions(together, run.inputs))
        for member in members:
            if fed := self._fed(member):
                calls += run.ask(questions([member], run.inputs), self._given(fed))
        for voice in voices(run.plan, calls, run.ask_one):
            self.voices[voice.member.model] = self._augmented(voice)

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
            {**_as_mapping(each), "answers": told}
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
        if voice is None:
            return
        given = questions_about(self.run, voice.asked)
        indexes = list(range(len(given)))

        def ask(asked: Member, _: Sequence[int]) -> Asked:
            return self.run.ask([(asked, indexes)], given)[0]

        heard = voices(self.run.plan, [ask(member, indexes)], ask)
        if not heard:
            return
        (back,) = heard
        if edge.kind == "validates":
            self.voices[edge.target] = _judged(voice, back, edge.weight)
        else:
            self.voices[edge.target] = self._corrected(voice, back, edge.weight)

    def _corrected(self, voice: Voice, back: Voice, weight: float) -> Voice:
        """The correction in the place of the answer; of scores both, by the edge's weight."""
        outputs, said = back.asked.outputs, voice.asked.outputs
        assert outputs is not None
        assert said is not None
        if weight != 1 and outputs.scores is not None and said.scores is not None:
            own = replace(voice, weight=1 - weight)
            other = replace(
                back, weight=weight, asked=replace(back.asked, indexes=voice.asked.indexes)
            )
            outputs = self._fuse_part([own, other], voice.asked.indexes)
        return replace(voice, asked=replace(voice.asked, outputs=outputs))


def _judged(voice: Voice, back: Voice, weight: float) -> Voice:
    """The voice, its weight less what the validator finds wrong with each answer."""
    found = (1 - weight + weight * judgement(back.asked)).tolist()
    before = voice.factors or (1.0,) * len(found)
    return replace(voice, factors=tuple(a * b for a, b in zip(before, found, strict=True)))


def _as_mapping(given: Any) -> dict[str, Any]:
    return dict(given) if isinstance(given, dict) else {"input": given}
