"""What became of a statement whose program died, where the database can tell."""

from __future__ import annotations

import re
from typing import Literal

from psycopg.rows import scalar_row

from arc_halo.errors import DatabaseError
from arc_halo.store.connection import Connection
from arc_halo.store.migration_begun import Begun
from arc_halo.store.migration_scripts import Script, Statement

Next = Literal["skip", "run"]


def recover(conn: Connection, script: Script, statement: Statement, begun: Begun) -> Next:
    """Whether the statement that a run was interrupted in is to be run (again), or had its effect.

    An index that was left invalid is dropped. Raises `DatabaseError` (AH045), which says what to
    do, where nothing tells.
    """
    if index := _CREATES_INDEX.match(statement.sql):
        return _recover_index(conn, index["name"], begun)
    if index := _DROPS_INDEX.match(statement.sql):
        is_there = _is_valid(conn, index["name"]) is not None
        return "run" if is_there or begun.is_settled else "skip"
    if begun.is_settled or _REPEATABLE.match(statement.sql):
        return "run"
    raise DatabaseError(
        f"{script.where(statement.offset)}: an earlier run was interrupted in this statement, and "
        "nothing tells whether it took effect",
        code="AH045",
        hint=f"look whether it did; then `arc-halo migrate repair {begun.id} --reason TEXT` with "
        "`--statement done` or `--statement again`, and the same command once more",
    )


IS_VALID = """
SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%(name)s)
"""

_NAME = r'(?P<name>(?:"(?:[^"]|"")+"|\w+)(?:\.(?:"(?:[^"]|"")+"|\w+))?)'
_CREATES_INDEX = re.compile(
    rf"CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?{_NAME}\s+ON\b",
    re.IGNORECASE,
)
_DROPS_INDEX = re.compile(
    rf"DROP\s+INDEX\s+CONCURRENTLY\s+(?:IF\s+EXISTS\s+)?{_NAME}\s*(?:CASCADE|RESTRICT)?\s*;?\s*\Z",
    re.IGNORECASE,
)
_REPEATABLE = re.compile(
    r"(?:VACUUM|ANALYZE|REFRESH)\b|(?:CREATE|DROP|ALTER)\b.*\bIF\s+(?:NOT\s+)?EXISTS\b",
    re.IGNORECASE | re.DOTALL,
)


def _recover_index(conn: Connection, name: str, begun: Begun) -> Next:
    is_valid = _is_valid(conn, name)
    if is_valid is None or (is_valid and begun.is_settled):
        return "run"
    if is_valid:
        return "skip"
    conn.execute(f"DROP INDEX CONCURRENTLY {name}".encode())
    return "run"


def _is_valid(conn: Connection, name: str) -> bool | None:
    """Of an index that is not there, None."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(IS_VALID, {"name": name}).fetchone()
