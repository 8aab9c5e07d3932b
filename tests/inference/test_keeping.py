"""How much of what is captured is kept: what is given, what is declared, and the usual."""

from __future__ import annotations

from datetime import timedelta

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
    assert keeping(conn, "attention_patterns", None, None) == Keeping(budget_bytes=2**30)


@pytest.mark.parametrize(("budget", "ttl"), [(-1, None), (None, 0), (None, float("nan"))])
def test_what_is_no_budget_or_no_time_is_refused(
    conn: Connection, budget: int | None, ttl: float | None
) -> None:
    with pytest.raises(InvalidInputError):
        keeping(conn, "activation_cache", budget, ttl)
