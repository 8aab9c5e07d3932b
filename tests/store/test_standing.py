"""The marks of where a project stands: every write to a compared row moves them."""

from __future__ import annotations

import pytest

from arc_halo.store.connection import Connection
from arc_halo.store.drift import DRIFTED
from arc_halo.store.standing import standing

WRITES = {
    "insert": "INSERT INTO fusion_strategies (name, uses) VALUES ('new', 'linear')",
    "update": "UPDATE fusion_strategies SET description = 'other' WHERE name = 'a'",
    "the same again": "UPDATE fusion_strategies SET description = description",
    "delete": "DELETE FROM fusion_strategies WHERE name = 'a'",
    "one goes, one comes": """
        WITH gone AS (DELETE FROM fusion_strategies WHERE name = 'a')
        INSERT INTO fusion_strategies (name, uses) VALUES ('new', 'linear')""",
}


def fill(conn: Connection) -> None:
    conn.execute("INSERT INTO projects (name) VALUES ('p')")
    for name in "abc":
        conn.execute("INSERT INTO fusion_strategies (name, uses) VALUES (%s, 'linear')", [name])


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_write_moves_the_marks(database: str, write: str) -> None:
    import psycopg

    with psycopg.connect(database, autocommit=True) as conn:
        fill(conn)
        before = standing(conn, "p")
        conn.execute("CREATE TABLE unrelated AS SELECT 1 AS x")  # transactions go on
        assert standing(conn, "p") == before
        conn.execute(write.encode())
        assert standing(conn, "p") != before


def test_a_project_that_never_applied_stands_nowhere(conn: Connection) -> None:
    assert standing(conn, "nobody") is None


def test_drift_is_looked_for_without_lists_of_names() -> None:
    assert "unnest" not in DRIFTED
    assert "%(names)s" not in DRIFTED
