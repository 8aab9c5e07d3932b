"""Sessions compared: where their configs differ, and what became of each metric in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from arc_halo.store.rows import Connection
from arc_halo.store.training_reading import SessionRow
from arc_halo.training import reading
from arc_halo.training.configs import changed, flattened
from arc_halo.training.reading import SeriesKey, Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A key of a config, nested ones joined by dots, with its value in each session that has it."""

    key: str
    values: Mapping[UUID, Any]
    is_same: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A series in each session that has it."""

    key: str
    scope: str
    summaries: Mapping[UUID, Summary]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Sessions beside one another, in the order they were given."""

    sessions: tuple[SessionRow, ...]
    config: tuple[Setting, ...]
    dataset: tuple[Setting, ...]
    metrics: tuple[Metric, ...]

    @property
    def differences(self) -> tuple[Setting, ...]:
        """What in their configs is not the same in all."""
        return tuple(setting for setting in self.config if not setting.is_same)


def compare(
    conn: Connection,
    named: Sequence[str | UUID],
    *,
    metric: str = "*",
    scope: str | None = None,
) -> Comparison:
    """Sessions by their ids or names; one that is named twice counts once.

    `metric` is a pattern with * and ?. Raises `NotFoundError`.
    """
    found = [reading.session(conn, each) for each in named]
    sessions = tuple({each.id: each for each in found}.values())
    summaries = {
        each.id: reading.summaries(conn, each.id, metric=metric, scope=scope) for each in sessions
    }
    return Comparison(
        sessions=sessions,
        config=settings({each.id: each.config for each in sessions}),
        dataset=settings({each.id: each.dataset for each in sessions}),
        metrics=metrics(summaries),
    )


def settings(configs: Mapping[UUID, Mapping[str, Any]]) -> tuple[Setting, ...]:
    """The keys of all configs in the order of their names."""
    flat = {session: flattened(config) for session, config in configs.items()}
    first = next(iter(configs.values()), {})
    different = {key for config in configs.values() for key in changed(first, config)}
    keys = sorted({key for config in flat.values() for key in config})
    return tuple(
        Setting(
            key=key,
            values={session: config[key] for session, config in flat.items() if key in config},
            is_same=key not in different,
        )
        for key in keys
    )


def metrics(summaries: Mapping[UUID, Sequence[Summary]]) -> tuple[Metric, ...]:
    """The series of all sessions by scope and key."""
    found: dict[SeriesKey, dict[UUID, Summary]] = {}
    for session, each in summaries.items():
        for summary in each:
            key = SeriesKey(key=summary.key, scope=summary.scope)
            found.setdefault(key, {})[session] = summary
    ordered = sorted(found, key=lambda key: (key.scope, key.key))
    return tuple(Metric(key=key.key, scope=key.scope, summaries=found[key]) for key in ordered)
