"""What a reactor is when it runs: its members in their roles, and its policies."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from arc_halo.manifest.documents import InteractionSpec
from arc_halo.manifest.reactors import RUN_DEFAULTS
from arc_halo.runners.generating import Decoding
from arc_halo.types import JsonObject

OnFailure = Literal["fail", "skip", "fallback"]
Choice = Literal["all", "first", "fastest", "best"]
Record = Literal["full", "digest", "none"]
Level = Literal["answers", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A model of a reactor. `runner` is what has it answer, None where nothing does."""

    model: str
    role: str
    weight: float
    priority: int | None
    cost: float
    domains: tuple[str, ...]
    runner: JsonObject | None
    architecture: JsonObject = field(default_factory=dict)
    root: bytes | None = None
    weight_set_id: int | None = None
    tokenizer_digest: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReactorPlan:
    """A reactor as the database has it, ready to be run."""

    name: str
    type: str
    strategy: str
    params: JsonObject
    members: tuple[Member, ...]
    interactions: tuple[InteractionSpec, ...]
    on_failure: OnFailure
    fallback: str | None
    quorum: int
    timeout_seconds: float | None
    threshold: float
    choose: Choice
    record: Record
    record_ttl: timedelta | None
    level: Level = "answers"
    decoding: Decoding = field(default_factory=Decoding)

    @property
    def voters(self) -> tuple[Member, ...]:
        """The members whose answers are fused: all but validators."""
        return tuple(member for member in self.members if member.role != "validator")

    @property
    def validators(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.role == "validator")

    @property
    def ordered(self) -> tuple[Member, ...]:
        """The voters in the order of a cascade: by priority, without one the primary first."""
        places = {member.model: place for place, member in enumerate(self.members)}

        def place(member: Member) -> tuple[float, bool, int]:
            priority = float("inf") if member.priority is None else member.priority
            return priority, member.role != "primary", places[member.model]

        return tuple(sorted(self.voters, key=place))

    def member(self, name: str) -> Member:
        return next(member for member in self.members if member.model == name)


def plan_of(name: str, spec: JsonObject, models: dict[str, JsonObject]) -> ReactorPlan:
    """From a reactor's document, and what the registry says of each of its models."""
    run = {**RUN_DEFAULTS, **spec["run"]}
    ttl = run["record_ttl"]
    return ReactorPlan(
        name=name,
        type=spec["type"],
        strategy=spec["uses"],
        params=spec["params"],
        members=tuple(_member(each, models[each["model"]]) for each in spec["members"]),
        interactions=tuple(
            InteractionSpec(
                source=edge["from"], target=edge["to"], kind=edge["kind"], weight=edge["weight"]
            )
            for edge in spec["interactions"]
        ),
        on_failure=run["on_failure"],
        fallback=run["fallback"],
        quorum=run["quorum"],
        timeout_seconds=run["timeout"],
        threshold=run["threshold"],
        choose=run["choose"],
        record=run["record"],
        record_ttl=None if ttl is None else timedelta(seconds=ttl),
        level=run["level"],
        decoding=Decoding(
            max_tokens=run["max_tokens"],
            temperature=run["temperature"],
            seed=run["seed"],
            stop=tuple(run["stop"]),
        ),
    )


def _member(said: JsonObject, model: JsonObject) -> Member:
    return Member(
        model=said["model"],
        role=said["role"],
        weight=said["weight"],
        priority=said["priority"],
        cost=said["cost"],
        domains=tuple(said["domains"]),
        **model,
    )
