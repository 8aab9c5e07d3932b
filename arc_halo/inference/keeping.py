"""How much of what was captured is kept, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from arc_halo.errors import InvalidInputError
from arc_halo.store import cache_policies
from arc_halo.store.rows import Connection

BUDGETS = {"activation_cache": 2 * 1024**3, "attention_patterns": 1024**3}
"""What all activations of a database may take, and all attention, unless something else is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """None is no limit."""

    budget_bytes: int | None = None
    ttl: timedelta | None = None


def keeping(
    conn: Connection, cache: str, budget_bytes: int | None, ttl_seconds: float | None
) -> Keeping:
    """What is given, and else what is declared of the cache, or the usual.

    Raises `InvalidInputError` for what is no budget, or no time.
    """
    declared = cache_policies.find(conn, cache)
    if budget_bytes is None:
        budget_bytes = declared.budget_bytes if declared else BUDGETS[cache]
    if ttl_seconds is None and declared is not None:
        ttl_seconds = declared.ttl_seconds
    if budget_bytes is not None and budget_bytes < 0:
        raise InvalidInputError(f"budget_bytes={budget_bytes} is less than nothing", code="AH007")
    if ttl_seconds is not None and not 0 < ttl_seconds < 1e11:
        raise InvalidInputError(
            f"ttl_seconds={ttl_seconds} is no time to live",
            hint="leave it out for what is declared, or no limit",
            code="AH007",
        )
    ttl = None if ttl_seconds is None else timedelta(seconds=ttl_seconds)
    return Keeping(budget_bytes=budget_bytes, ttl=ttl)
