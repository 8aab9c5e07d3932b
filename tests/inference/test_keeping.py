"""How much of what is captured is kept: what is given, what is declared, and the usual."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from arc_halo.errors import InvalidInputError
from arc_halo.inference.keeping import Keeping, keeping
from arc_halo.store.connection import Connection

DECLARED = """
INSERT INTO cache_policies (name, budget_bytes, ttl)
VALUES ('activation_cache', 5000000, '7 days')
"""


def test_what_is_given_counts_before_what_is_declared_and_that_before_the_usual(
    conn: Connection,
) -> None:
    assert keeping(conn, "activation_cache", None, None) == Keeping(budget_bytes=2 * 2**30)
    assert keeping(conn, "attention_patterns", None, None) == Keeping(budget_bytes=2**30)
    conn.execute(DECLARED)
    assert keeping(conn, "activation_cache", None, None) == Keeping(
        budget_bytes=5_000_000, ttl=timedelta(days=7)
    )
    assert keeping(conn, "activation_cache", 0, 60) == Keeping(
        budget_bytes=0, ttl=timedelta(minutes=1)
    )
    assert keeping(conn, "activation_cache", None, math.inf).ttl is None
    assert keeping(conn, "attention_patterns", None, None) == Keeping(budget_bytes=2**30)


@pytest.mark.parametrize("budget", [-1, 1.5, "2GiB", True, math.inf, 2**63])
def test_what_is_no_budget_is_refused(conn: Connection, budget: Any) -> None:
    with pytest.raises(InvalidInputError, match="budget_bytes"):
        keeping(conn, "activation_cache", budget, None)


@pytest.mark.parametrize("ttl", [0, -1, math.nan, -math.inf, 1e12, "1d", timedelta(1), True])
def test_what_is_no_time_to_live_is_refused(conn: Connection, ttl: Any) -> None:
    with pytest.raises(InvalidInputError, match="ttl_seconds"):
        keeping(conn, "activation_cache", None, ttl)
