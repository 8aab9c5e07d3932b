"""What becomes of members that do not answer, and whether those that are left are enough."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from arc_halo.errors import ReactorError
from arc_halo.outputs import Outputs
from arc_halo.reactors.asking import Asked
from arc_halo.reactors.plans import Member, ReactorPlan

AskOne = Callable[[Member, Sequence[int]], Asked]


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """A member's answers as they count: its own, or those of who stands in for it.

    `factors` are what the weight is multiplied by for each of the answers, where validators have
    found that they differ.
    """

    member: Member
    asked: Asked
    weight: float
    factors: tuple[float, ...] | None = None

    def answers(self, indexes: Sequence[int]) -> Outputs:
        """The answers to some of the inputs of the batch, in that order."""
        outputs = self.asked.outputs
        assert outputs is not None
        if list(self.asked.indexes) == list(indexes):
            return outputs
        places = {index: place for place, index in enumerate(self.asked.indexes)}
        return outputs.take([places[index] for index in indexes])

    def part(self, indexes: Sequence[int]) -> Voice:
        """The same voice, heard of these inputs only."""
        asked = replace(self.asked, outputs=self.answers(indexes), indexes=tuple(indexes))
        factors = self.factors
        if factors is not None:
            known = dict(zip(self.asked.indexes, factors, strict=True))
            factors = tuple(known[index] for index in indexes)
        return replace(self, asked=asked, factors=factors)

    def weight_of(self, place: int) -> float:
        """The weight of one of the answers."""
        return self.weight if self.factors is None else self.weight * self.factors[place]


def voices(plan: ReactorPlan, asked: Sequence[Asked], ask_one: AskOne) -> list[Voice]:
    """The answers that count, after the policy of the reactor for those that did not come.

    With `fail` the first failure is raised; with `skip` they are left out; with `fallback` another
    member answers in their place, once more only if it has not answered to the same inputs.
    Raises `ReactorError`.
    """
    found = []
    for each in asked:
        stands = each
        if each.error is not None:
            if plan.on_failure == "fail":
                raise ReactorError(
                    f"{plan.name}: {each.error.message}",
                    hint=each.error.hint or "`run.on_failure: skip` goes on without it",
                    code=each.error.error_code,
                ) from each.error
            if plan.on_failure == "skip":
                continue
            stands = _fallback(plan, each, asked, ask_one)
        found.append(Voice(member=each.member, asked=stands, weight=each.member.weight))
    return found


def check_quorum(
    plan: ReactorPlan, voices: Sequence[Voice], count: int, asked: Sequence[Asked]
) -> None:
    """Raise `ReactorError` unless enough members answered to each of `count` inputs.

    It says why one of those that were asked did not, or else who was not asked at all.
    """
    answered: list[set[str]] = [set() for _ in range(count)]
    for voice in voices:
        for index in voice.asked.indexes:
            answered[index].add(voice.asked.member.model)
    for index, members in enumerate(answered):
        if len(members) < plan.quorum:
            place = f" to input {index}" if count > 1 else ""
            raise ReactorError(
                f"{plan.name}: {len(members)} of {len(plan.voters)} members answered{place}, and "
                f"its quorum is {plan.quorum}{_why(asked) or _unasked(plan, members, index, asked)}"
            )


def _why(asked: Sequence[Asked]) -> str:
    told = next((each.error.message for each in asked if each.error is not None), None)
    return f": {told}" if told else ""


def _unasked(
    plan: ReactorPlan, answered: Collection[str], index: int, asked: Sequence[Asked]
) -> str:
    known = {*answered, *(each.member.model for each in asked if index in each.indexes)}
    names = [member.model for member in plan.voters if member.model not in known]
    are = "was" if len(names) == 1 else "were"
    return f": {', '.join(names)} {are} not asked, for the domain of the input" if names else ""


def _fallback(plan: ReactorPlan, failed: Asked, asked: Sequence[Asked], ask_one: AskOne) -> Asked:
    assert plan.fallback is not None
    there = next((each for each in asked if each.member.model == plan.fallback), None)
    if there is None or (there.outputs is not None and there.indexes != failed.indexes):
        there = ask_one(plan.member(plan.fallback), failed.indexes)
    if there.error is not None:
        assert failed.error is not None
        raise ReactorError(
            f"{plan.name}: {failed.error.message}; and its fallback: {there.error.message}"
        ) from failed.error
    return replace(there, indexes=failed.indexes)
