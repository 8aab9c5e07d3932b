"""How much of what was captured is kept, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.inference.checking import check_number
from arc_halo.store import cache_policies
from arc_halo.store.rows import Connection

BUDGETS = {"activation_cache": 2 * 1024**3, "attention_patterns": 1024**3}
"""What all activations of a database may take, and all attention, unless something else is said."""

MOST_SECONDS = 1e11
MOST_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """There is always a budget; without `ttl` nothing goes for its age."""

    budget_bytes: int
    ttl: timedelta | None = None


def keeping(
    conn: Connection, cache: str, budget_bytes: int | None, ttl_seconds: float | None
) -> Keeping:
    """What is given, and else what is declared of the cache, or the usual.

    Raises `InvalidInputError` for what is no budget, or no time.
    """
    if budget_bytes is not None:
        check_number("budget_bytes", budget_bytes, 0, MOST_BYTES, is_whole=True)
    if ttl_seconds is not None:
        _check_seconds(ttl_seconds)
    declared = cache_policies.find(conn, cache)
    if budget_bytes is None:
        budget_bytes = declared.budget_bytes if declared else BUDGETS[cache]
    if ttl_seconds is None and declared is not None:
        ttl_seconds = declared.ttl_seconds
    if ttl_seconds is None or math.isinf(ttl_seconds):
        return Keeping(budget_bytes=budget_bytes)
    return Keeping(budget_bytes=budget_bytes, ttl=timedelta(seconds=ttl_seconds))


def _check_seconds(given: Any) -> None:
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not (0 < given < MOST_SECONDS or given == math.inf):
        raise InvalidInputError(
            f"ttl_seconds={given!r} is no time to live",
            hint="write seconds, such as 7 * 86400; math.inf for no limit, and leave it out for "
            "what is declared",
            code="AH007",
        )
