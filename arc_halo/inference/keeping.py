"""How much of what was captured is kept, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from arc_halo.errors import InvalidInputError

BUDGET_BYTES = 1024**3
"""What all activations of a database may take, and all attention, unless something else is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """None is no limit."""

    budget_bytes: int | None = BUDGET_BYTES
    ttl: timedelta | None = None


def keeping(budget_bytes: int | None, ttl_seconds: float | None) -> Keeping:
    """Raises `InvalidInputError` for what is no budget, or no time."""
    if budget_bytes is not None and budget_bytes < 0:
        raise InvalidInputError(f"budget_bytes={budget_bytes} is less than nothing", code="AH007")
    if ttl_seconds is not None and not 0 < ttl_seconds < 1e10:
        raise InvalidInputError(
            f"ttl_seconds={ttl_seconds} is no time to live",
            hint="leave it out for no limit",
            code="AH007",
        )
    ttl = None if ttl_seconds is None else timedelta(seconds=ttl_seconds)
    return Keeping(budget_bytes=budget_bytes, ttl=ttl)
