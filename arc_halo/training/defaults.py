"""What a session begins with: what its program gives, and where it gives nothing, what a manifest
declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from arc_halo.errors import InvalidInputError
from arc_halo.store.training_sessions import NewSession, SessionRecord
from arc_halo.store.trainings import Training
from arc_halo.training.checkpoints.checkpoints import Keeping
from arc_halo.training.checkpoints.retention import Mode, Retention
from arc_halo.training.logging import LogSettings
from arc_halo.training.system import reader
from arc_halo.types import JsonObject

T = TypeVar("T")

FLUSH_SECONDS = 60.0
HEARTBEAT_SECONDS = 30.0
"""The longest that may be asked for; who says nothing for a minute counts as crashed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a program says of its session; None is what it leaves to others."""

    name: str | None = None
    total_epochs: int | None = None
    total_steps: int | None = None
    config: JsonObject | None = None
    dataset: JsonObject | None = None
    group: str | None = None
    tags: JsonObject | None = None
    notes: str | None = None


def new_session(
    model: str,
    given: Given,
    declared: Training | None = None,
    *,
    project: str | None = None,
    parent: SessionRecord | None = None,
    forked_at_step: int | None = None,
) -> NewSession:
    """A session of training `model`. What is given goes before what is declared, key by key in
    `config` and `tags`; a fork has the config and the dataset of its parent before both.
    """
    name, _, version = model.partition("@")
    config = given_config(given.config, declared)
    dataset = given.dataset
    if parent is not None:
        config = parent.config if given.config is None else config
        dataset = parent.dataset if dataset is None else dataset
    return NewSession(
        model_name=name,
        model_version=version,
        name=given.name,
        project=project,
        training_name=declared.name if declared else None,
        total_epochs=_first(given.total_epochs, declared.total_epochs if declared else None),
        total_steps=_first(given.total_steps, declared.total_steps if declared else None),
        config=config,
        dataset=_first(dataset, declared.dataset if declared else None) or {},
        parent_id=None if parent is None else parent.id,
        forked_at_step=forked_at_step,
        group=_first(given.group, declared.group if declared else None),
        tags={**(declared.tags if declared else {}), **(given.tags or {})},
        notes=_first(given.notes, declared.notes if declared else None),
    )


def given_config(config: JsonObject | None, declared: Training | None) -> JsonObject:
    """The declared config with what the program gives in place of it, key by key."""
    return {**(declared.config if declared else {}), **(config or {})}


def log_settings(
    declared: Training | None = None,
    *,
    flush_seconds: float | None = None,
    heartbeat_seconds: float | None = None,
    spool_bytes: int | None = None,
    system_seconds: float | None = None,
) -> LogSettings:
    """How a session logs. Raises `InvalidInputError` for an interval that makes no sense, and
    `ArcHaloError` where what measures the machine is not installed."""
    usual = declared.logging if declared else LogSettings()
    measured = _first(system_seconds, usual.system_seconds)
    if measured is not None:
        if not 1 <= measured <= 3600:
            raise InvalidInputError(f"system_seconds={measured}: write 1 to 3600")
        reader()
    return LogSettings(
        flush_seconds=_interval(
            "flush_seconds", _first(flush_seconds, usual.flush_seconds), FLUSH_SECONDS
        ),
        heartbeat_seconds=_interval(
            "heartbeat_seconds",
            _first(heartbeat_seconds, usual.heartbeat_seconds),
            HEARTBEAT_SECONDS,
        ),
        spool_bytes=usual.spool_bytes if spool_bytes is None else spool_bytes,
        system_seconds=measured,
    )


def keeping(
    declared: Training | None = None,
    retention: Mapping[str, int] | None = None,
    best_metric: str | None = None,
    best_mode: Mode | None = None,
) -> Keeping:
    """Which checkpoints of a session stay: by what is given, and else by what is declared.

    Raises `InvalidInputError` for a retention that makes no sense.
    """
    named = declared.best_metric if declared and best_metric is None else None
    if named is not None:
        best_metric, best_mode = named.name, best_mode or named.mode
    if retention is None and declared is not None and declared.retention is not None:
        retention = dataclasses.asdict(declared.retention)
    policy = Retention.of(retention)
    if policy.keep_best is not None and best_metric is None:
        raise InvalidInputError(
            "keep_best: nothing says which metric decides what is best",
            hint='write best_metric="eval/loss", or leave `keep_best` out',
            code="AH027",
        )
    return Keeping(policy=policy, best_metric=best_metric, best_mode=best_mode or "min")


def check_model(model: str, declared: Training | None) -> None:
    """Raise `InvalidInputError` where a session is of another model than its training."""
    if declared is not None and model != declared.model:
        raise InvalidInputError(
            f"training/{declared.name} trains {declared.model}, not {model}",
            hint="leave the model out, or the training",
            code="AH027",
        )


def _first(given: T | None, usual: T | None) -> T | None:
    return usual if given is None else given


def _interval(name: str, seconds: float | None, most: float) -> float:
    if seconds is None or not 0 < seconds <= most:
        raise InvalidInputError(f"{name}={seconds}: write more than 0, at most {most:.0f}")
    return seconds
