"""Which checkpoints stay, and why: a pure decision over what a session has."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from arc_halo.errors import InvalidInputError

CheckpointType = Literal["full", "weights_only", "optimizer_only"]
Mode = Literal["min", "max"]

RULES = ("latest", "best", "pinned", "forked", "keep_last", "keep_best", "keep_every")
"""In the order in which they are told. The first four hold whatever the policy says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How many checkpoints stay: the last ones of each type, the best ones, every so many steps.

    What nothing of it is said about stays all: a policy that says nothing deletes nothing.
    """

    keep_last: int | None = None
    keep_best: int | None = None
    keep_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("keep_last", "keep_best", "keep_every"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InvalidInputError(
                    f"{name} is {value!r}: it is a whole number from 1 on", code="AH007"
                )

    @classmethod
    def of(cls, given: Retention | Mapping[str, Any] | None) -> Retention:
        """From a mapping as a manifest has it; None keeps all. Raises `InvalidInputError`."""
        if isinstance(given, Retention):
            return given
        names = [each.name for each in fields(cls)]
        if odd := [name for name in given or {} if name not in names]:
            raise InvalidInputError(
                f"retention has no {', '.join(map(repr, odd))}",
                hint=f"it has {', '.join(names)}",
                code="AH006",
            )
        return cls(**(given or {}))

    @property
    def keeps_all(self) -> bool:
        return self.keep_last is self.keep_best is self.keep_every is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What the decision needs to know of a checkpoint.

    `value` is that of the session's best metric, if it was measured; `is_forked` says that another
    session went on from here.
    """

    id: UUID
    step: int
    type: CheckpointType
    created_at: datetime
    value: float | None = None
    is_best: bool = False
    is_pinned: bool = False
    is_forked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`kept` has the rules that keep each that stays, in the order of `RULES`; `gone` the rest."""

    kept: Mapping[UUID, tuple[str, ...]]
    gone: Sequence[UUID]


def decide(
    checkpoints: Iterable[Candidate], policy: Retention, mode: Mode | None = None
) -> Decision:
    """Which of a session's checkpoints stay under the policy; `mode` is that of the best metric.

    The latest of each type, the best, what is pinned and what a fork came from always stay.
    """
    known = sorted(checkpoints, key=lambda each: (each.step, each.created_at, each.id))
    reasons: dict[UUID, set[str]] = defaultdict(set)
    for rule, each in _kept(known, policy, mode):
        reasons[each.id].add(rule)
    kept = {each.id: tuple(r for r in RULES if r in reasons[each.id]) for each in known}
    if policy.keeps_all:
        return Decision(kept=kept, gone=())
    return Decision(
        kept={id_: rules for id_, rules in kept.items() if rules},
        gone=tuple(id_ for id_, rules in kept.items() if not rules),
    )


def with_rule(kept_because: str | None, rule: str, *, holds: bool) -> str | None:
    """Why a checkpoint is kept, with one rule more or less."""
    rules = set((kept_because or "").split(", ")) - {rule} | ({rule} if holds else set())
    return ", ".join(each for each in RULES if each in rules) or None


def best(checkpoints: Iterable[Candidate], mode: Mode) -> Candidate | None:
    """The one with the best value; of equals the earliest. NaN is never best."""
    return next(iter(_ranked(checkpoints, mode)), None)


def _kept(
    known: Sequence[Candidate], policy: Retention, mode: Mode | None
) -> Iterator[tuple[str, Candidate]]:
    """Every rule with every checkpoint that it keeps; `known` is in the order of steps."""
    by_type: dict[str, list[Candidate]] = defaultdict(list)
    for each in known:
        by_type[each.type].append(each)
        facts = (("best", each.is_best), ("pinned", each.is_pinned), ("forked", each.is_forked))
        yield from ((rule, each) for rule, holds in facts if holds)
        if policy.keep_every is not None and each.step % policy.keep_every == 0:
            yield "keep_every", each
    for group in by_type.values():
        yield "latest", group[-1]
        if policy.keep_last:
            yield from (("keep_last", each) for each in group[-policy.keep_last :])
    if policy.keep_best and mode is not None:
        yield from (("keep_best", each) for each in _ranked(known, mode)[: policy.keep_best])


def _ranked(checkpoints: Iterable[Candidate], mode: Mode) -> list[Candidate]:
    sign = 1 if mode == "min" else -1
    measured = [
        (sign * each.value, each.step, each.created_at, each.id, each)
        for each in checkpoints
        if each.type != "optimizer_only" and each.value is not None and not math.isnan(each.value)
    ]
    return [each for *_, each in sorted(measured, key=lambda item: item[:-1])]
