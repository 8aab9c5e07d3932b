"""How ids, numbers and times are told: to people, and as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from _typeshed import DataclassInstance

    from arc_halo.types import JsonObject

SHORT = 8
"""Digits of an id that are shown where there is no room for all."""


def short(id: UUID) -> str:
    return str(id)[:SHORT]


def model(name: str, root: bytes | None) -> str:
    """Its names, or else the beginning of the root of its weights."""
    return name or ("-" if root is None else root.hex()[:12])


def number(value: float | None) -> str:
    """For people; `-` where there is none."""
    return "-" if value is None else f"{value:.6g}"


def json_number(value: float | None) -> float | str | None:
    """As JSON has it, which knows no NaN and no infinity: they are texts."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def moment(at: datetime | None) -> str:
    from arc_halo.sizes import format_time

    return "-" if at is None else format_time(at)


def facts(record: DataclassInstance) -> JsonObject:
    """What a record holds, as JSON."""
    from dataclasses import asdict
    from datetime import UTC, datetime
    from uuid import UUID

    from arc_halo.tensors.digests import format_digest

    def plain(value: Any) -> Any:
        if isinstance(value, UUID):
            return str(value)
        if isinstance(value, bytes):
            return format_digest(value)
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat()
        return json_number(value) if isinstance(value, float) else value

    return {name: plain(value) for name, value in asdict(record).items()}
