"""How sessions, their numbers and their times are told: to people, and as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from arc_halo.store.training_reading import SessionRow
    from arc_halo.training.reading import Summary
    from arc_halo.types import JsonObject

SHORT = 8
"""Digits of an id that are shown where there is no room for all."""


def label(session: SessionRow) -> str:
    """What a session is called: by its name, or the beginning of its id."""
    return session.name or short(session)


def labels(sessions: list[SessionRow]) -> list[str]:
    """The same of several: with the beginning of the id where two have one name."""
    names = [label(each) for each in sessions]
    return [
        f"{name} {short(each)}" if names.count(name) > 1 and each.name else name
        for name, each in zip(names, sessions, strict=True)
    ]


def short(session: SessionRow) -> str:
    return str(session.id)[:SHORT]


def number(value: float | None) -> str:
    """For people; `-` where there is none."""
    return "-" if value is None else f"{value:.6g}"


def json_number(value: float | None) -> float | str | None:
    """As JSON has it, which knows no NaN and no infinity: they are texts."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def moment(at: datetime | None) -> str:
    return "-" if at is None else f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def progress(session: SessionRow) -> str:
    return "-" if session.progress is None else f"{session.progress:.0%}"


def of(current: float, total: int | None) -> str:
    """`1200 of 5000`, `3.5`."""
    return f"{current:g}" if total is None else f"{current:g} of {total}"


def session_facts(session: SessionRow) -> JsonObject:
    """A session as JSON."""
    from dataclasses import asdict
    from datetime import UTC, datetime
    from uuid import UUID

    def plain(value: Any) -> Any:
        if isinstance(value, UUID):
            return str(value)
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat()
        return json_number(value) if isinstance(value, float) else value

    return {name: plain(value) for name, value in asdict(session).items()}


def summary_facts(summary: Summary) -> JsonObject:
    from dataclasses import asdict

    return {
        name: json_number(value) if isinstance(value, float) else value
        for name, value in asdict(summary).items()
    }
