"""The ways in which the members of a reactor answer together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arc_halo.outputs import Outputs
from arc_halo.reactors.asking import Asked, Panel
from arc_halo.reactors.fusing import Fuser
from arc_halo.reactors.plans import Member, ReactorPlan
from arc_halo.reactors.policies import check_quorum, voices

Question = tuple[Member, Sequence[int]]
"""A member, and the inputs of the batch that it is asked."""


@dataclass(slots=True, kw_only=True)
class Run:
    """A batch of inputs on its way through a reactor; `asked` is whoever was asked so far."""

    plan: ReactorPlan
    panel: Panel
    fuser: Fuser
    inputs: Sequence[Any]
    asked: list[Asked] = field(default_factory=list)

    def ask(
        self,
        questions: Sequence[Question],
        inputs: Sequence[Any] | None = None,
        places: Sequence[int] | None = None,
    ) -> list[Asked]:
        """Ask members at once, and write down what came of it.

        Where they are asked something else than the inputs of the batch, `places` says which of
        those each question is about.
        """
        given = self.inputs if inputs is None else inputs
        found = self.panel.ask(questions, given, self.plan.timeout_seconds)
        for each in found:
            indexes = each.indexes if places is None else tuple(places[i] for i in each.indexes)
            self.asked.append(replace(each, indexes=indexes))
        return found

    def ask_one(self, member: Member, indexes: Sequence[int]) -> Asked:
        return self.ask([(member, indexes)])[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a topology comes to: one fused answer, or the members' own side by side."""

    outputs: Outputs | None
    side_by_side: Mapping[str, Outputs] = field(default_factory=dict)


Topology = Callable[[Run], Answered]


def ensemble(run: Run) -> Answered:
    """All members at once, and one fused answer."""
    asked = run.ask(questions(run.plan.voters, run.inputs))
    heard = voices(run.plan, asked, run.ask_one)
    check_quorum(run.plan, heard, len(run.inputs), run.asked)
    return Answered(outputs=run.fuser.fuse(heard, run.inputs))


def questions(members: Sequence[Member], inputs: Sequence[Any]) -> list[Question]:
    """Which inputs each member is asked: a specialist those of its domains, others all."""
    found: list[Question] = []
    for member in members:
        if member.role == "specialist" and member.domains:
            indexes = [i for i, each in enumerate(inputs) if _domain(each) in member.domains]
        else:
            indexes = list(range(len(inputs)))
        if indexes:
            found.append((member, indexes))
    return found


def _domain(given: Any) -> str | None:
    return given.get("domain") if isinstance(given, dict) else None
