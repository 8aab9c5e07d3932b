"""Schema drift: what became of our tables, views and functions since the last migration.

`arc_halo_schema` has a row for each object of theirs, as migrations made it: every migration
writes what it changed itself, in its own transaction. So what somebody changes by hand stays told
of through later migrations, and what they add beside our tables is never looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from psycopg import sql
from psycopg.rows import class_row, scalar_row

from arc_halo.errors import SchemaMismatchError
from arc_halo.store.catalogue import (
    SchemaChange,
    SchemaObject,
    compare_catalogues,
    read_catalogue,
)
from arc_halo.store.connection import Connection
from arc_halo.store.failures import translate


def schema_drift(conn: Connection) -> tuple[SchemaChange, ...]:
    """What differs from how migrations left it, sorted by object. Only reads.

    Raises `SchemaMismatchError` where that cannot be told: nothing is recorded yet, or by a server
    of another major version, which words definitions otherwise.
    """
    with translate():
        _check_comparable(conn)
        recorded = _recorded(conn)
        live = read_catalogue(conn, parts={each.part_of for each in recorded})
    return compare_catalogues(recorded, live)


def wants_recording(conn: Connection) -> bool:
    """Whether the whole schema is to be recorded anew, and this role may do it."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        if _has_table(conn):
            may_write = cursor.execute(MAY_WRITE).fetchone()
            return bool(may_write) and _recorded_by(conn) != _major(conn)
        return bool(cursor.execute(MAY_CREATE).fetchone())


def record_changes(
    conn: Connection,
    before: Sequence[SchemaObject],
    after: Sequence[SchemaObject],
    *,
    names: Collection[str] | None = None,
) -> None:
    """Record what a migration did: the difference of the catalogue before it and after it.

    Where others may have changed the schema meanwhile, `names` are the tables and functions that
    are ours, beside those recorded.
    """
    known, remaining = set(before), {each.object for each in after}
    _forget(conn, [each.object for each in before if each.object not in remaining])
    new = [each for each in after if each not in known]
    _record(conn, new if names is None else _ours(conn, new, names))


def record_whole(conn: Connection, names: Collection[str]) -> None:
    """Record the schema as it is: what was recorded of, and the tables and functions `names`."""
    ensure_schema_table(conn)
    ours = _ours(conn, read_catalogue(conn), {*names, *_BOOKKEEPING})
    _forget(conn, [each.object for each in _recorded(conn)])
    _record(conn, ours)


def ensure_schema_table(conn: Connection) -> None:
    if not _has_table(conn):
        conn.execute(_CREATE_TABLE)
        conn.execute(_COMMENT_ON_TABLE)
        conn.execute(_COMMENT_ON_OBJECT)
        conn.execute(_COMMENT_ON_PART)
        conn.execute(_COMMENT_ON_MAJOR)


HAS_TABLE = """
SELECT to_regclass('arc_halo_schema') IS NOT NULL
"""

MAY_CREATE = """
SELECT has_schema_privilege(current_schema(), 'CREATE')
"""

MAY_WRITE = """
SELECT has_table_privilege('arc_halo_schema', 'INSERT')
   AND has_table_privilege('arc_halo_schema', 'DELETE')
"""

RECORDED_BY = """
SELECT server_major FROM arc_halo_schema LIMIT 1
"""

RECORDED = """
SELECT object, part_of, definition FROM arc_halo_schema ORDER BY object COLLATE "C"
"""

RECORD = """
INSERT INTO arc_halo_schema (object, part_of, definition, server_major)
SELECT object, part_of, definition, %(major)s
FROM unnest(%(objects)s::text[], %(parts)s::text[], %(definitions)s::text[])
    AS new (object, part_of, definition)
ON CONFLICT (object) DO UPDATE
SET part_of = excluded.part_of, definition = excluded.definition,
    server_major = excluded.server_major
"""

FORGET = """
DELETE FROM arc_halo_schema WHERE object = ANY(%(objects)s::text[])
"""

_CREATE_TABLE = sql.SQL("""
CREATE TABLE arc_halo_schema (
    object text PRIMARY KEY,
    part_of text NOT NULL,
    definition text NOT NULL,
    server_major integer NOT NULL
)
""")

_COMMENT_ON_TABLE = sql.SQL("""
COMMENT ON TABLE arc_halo_schema IS
    'The tables, views and functions as migrations made them, so that a later ALTER is noticed.'
""")

_COMMENT_ON_OBJECT = sql.SQL("""
COMMENT ON COLUMN arc_halo_schema.object IS
    'What it is and its name, as in column models.version.'
""")

_COMMENT_ON_PART = sql.SQL("""
COMMENT ON COLUMN arc_halo_schema.part_of IS
    'The table, view or function that it belongs to.'
""")

_COMMENT_ON_MAJOR = sql.SQL("""
COMMENT ON COLUMN arc_halo_schema.server_major IS
    'The major version of the server that worded the definition.'
""")


_BOOKKEEPING = ("arc_halo_migrations", "arc_halo_migrations_begun", "arc_halo_schema")


def _ours(
    conn: Connection, objects: Sequence[SchemaObject], names: Collection[str]
) -> list[SchemaObject]:
    parts = {each.part_of for each in _recorded(conn)}
    return [
        each for each in objects if each.part_of in parts or each.part_of.partition("(")[0] in names
    ]


def _check_comparable(conn: Connection) -> None:
    by = _recorded_by(conn) if _has_table(conn) else None
    if by is None:
        raise SchemaMismatchError(
            "no migration has recorded the schema yet",
            hint="run `arc-halo migrate up`, as the role that owns the tables",
        )
    if by != _major(conn):
        raise SchemaMismatchError(
            f"the server was upgraded from PostgreSQL {by} to {_major(conn)}, which words the "
            "schema otherwise than what was recorded",
            hint="run `arc-halo migrate up`, as the role that owns the tables: it records it anew",
        )


def _major(conn: Connection) -> int:
    return conn.info.server_version // 10_000


def _has_table(conn: Connection) -> bool:
    with conn.cursor(row_factory=scalar_row) as cursor:
        return bool(cursor.execute(HAS_TABLE).fetchone())


def _recorded_by(conn: Connection) -> int | None:
    with conn.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(RECORDED_BY).fetchone()


def _recorded(conn: Connection) -> tuple[SchemaObject, ...]:
    with conn.cursor(row_factory=class_row(SchemaObject)) as cursor:
        return tuple(cursor.execute(RECORDED))


def _record(conn: Connection, objects: Sequence[SchemaObject]) -> None:
    conn.execute(
        RECORD,
        {
            "objects": [each.object for each in objects],
            "parts": [each.part_of for each in objects],
            "definitions": [each.definition for each in objects],
            "major": _major(conn),
        },
    )


def _forget(conn: Connection, objects: Iterable[str]) -> None:
    conn.execute(FORGET, {"objects": list(objects)})
