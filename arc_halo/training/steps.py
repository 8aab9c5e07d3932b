"""Steps: whole numbers from 0 on, of whatever kind they come."""

from __future__ import annotations

from typing import Any

MAX_STEP = 2**63 - 1


def whole_step(given: Any) -> int | None:
    """The step that is meant, of a whole float too; None for what is none. It raises nothing."""
    try:
        step = _whole(given)
    except Exception:  # noqa: BLE001 - a tensor raises what it likes, and logging must not
        return None
    return step if step is not None and 0 <= step <= MAX_STEP else None


def _whole(given: Any) -> int | None:
    if isinstance(given, str | bytes | bytearray) or type(given).__name__ in ("bool", "bool_"):
        return None
    try:
        return int(given.__index__())
    except (AttributeError, TypeError):
        number = float(given)
        return int(number) if number.is_integer() else None
