"""What rolling migrations back would lose: the tables that go, and how many rows each has.

The rollbacks are tried, and undone, for only they know which tables go; of those, vectors have
tables that no file names. Rows are counted when nothing is locked any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql
from psycopg.rows import class_row, scalar_row

from arc_halo.store import migrate
from arc_halo.store.connection import Connection, translate

COUNTED_BYTES = 64 * 2**20
"""A table up to this size is counted; of a larger one the server's estimate is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostTable:
    """A table that goes, and its rows, of which `is_exact` says whether they were counted."""

    name: str
    rows: int
    is_exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The ids of what would be rolled back and of what could not be tried; the fullest first."""

    done: list[str]
    untried: list[str]
    tables: tuple[LostTable, ...]


def losses(
    conn: Connection, *, to: str, lock_timeout: float = 10.0, directory: Path | None = None
) -> Losses:
    """What `migrate.down` would lose. Nothing is changed; meanwhile it locks what `down` does."""
    with translate():
        before = _tables(conn)
        with migrate.tried_down(
            conn, to=to, lock_timeout=lock_timeout, directory=directory
        ) as outcome:
            kept = {table.name for table in _tables(conn)}
        gone = [_counted(conn, table) for table in before if table.name not in kept]
    tables = sorted(gone, key=lambda table: (-table.rows, table.name))
    return Losses(done=outcome.done, untried=outcome.untried, tables=tuple(tables))


# A partitioned table is the sum of its partitions. What was never analyzed has -1 rows.
TABLES = """
SELECT c.relname::text AS name, coalesce(sum(pg_relation_size(part.oid)), 0)::bigint AS size_bytes,
       coalesce(sum(part.reltuples), 0)::bigint AS rows,
       coalesce(bool_and(part.reltuples >= 0), true) AS is_analyzed
FROM pg_class AS c
LEFT JOIN LATERAL pg_partition_tree(c.oid) AS tree ON c.relkind = 'p' AND tree.isleaf
LEFT JOIN pg_class AS part ON part.oid = CASE c.relkind WHEN 'p' THEN tree.relid ELSE c.oid END
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
  AND NOT c.relispartition
GROUP BY c.oid, c.relname
"""

_COUNT = sql.SQL("SELECT count(*) FROM {}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    name: str
    size_bytes: int
    rows: int
    is_analyzed: bool


def _tables(conn: Connection) -> Sequence[_Table]:
    with conn.cursor(row_factory=class_row(_Table)) as cursor:
        return cursor.execute(TABLES).fetchall()


def _counted(conn: Connection, table: _Table) -> LostTable:
    if table.is_analyzed and table.size_bytes > COUNTED_BYTES:
        return LostTable(name=table.name, rows=table.rows, is_exact=False)
    with conn.cursor(row_factory=scalar_row) as cursor:
        (rows,) = cursor.execute(_COUNT.format(sql.Identifier(table.name)))
    return LostTable(name=table.name, rows=rows, is_exact=True)
