"""What a database remembers of its migrations: yoyo's marks, and the digests of their texts.

yoyo's tables are the truth of what is applied, so that `yoyo list` agrees. Its marks know a file
by its name alone; `arc_halo_migrations` knows the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import sql
from psycopg.rows import class_row, tuple_row

from arc_halo._version import __version__
from arc_halo.store.connection import Connection
from arc_halo.store.migration_files import MigrationFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An applied migration; without a digest when only yoyo knows of it."""

    id: str
    applied_at: datetime
    digest: bytes | None


def read_marks(conn: Connection) -> dict[str, Mark]:
    """The applied migrations by id, other programs' among them. Works on any database."""
    has_yoyo, has_digests = _has_tables(conn)
    if not has_yoyo:
        return {}
    with conn.cursor(row_factory=class_row(Mark)) as cursor:
        return {mark.id: mark for mark in cursor.execute(MARKS if has_digests else YOYO_MARKS)}


def ensure_digests_table(conn: Connection) -> None:
    if not _has_tables(conn)[1]:
        conn.execute(_CREATE_TABLE)
        conn.execute(_COMMENT_ON_TABLE)


def record_digest(conn: Connection, file: MigrationFile, *, duration_ms: float | None) -> None:
    conn.execute(
        RECORD,
        {
            "id": file.id,
            "digest": file.digest,
            "tool_version": __version__,
            "duration_ms": duration_ms,
        },
    )


def accept_digest(conn: Connection, file: MigrationFile) -> None:
    """Take the file's text for the one that was applied."""
    conn.execute(ACCEPT, {"id": file.id, "digest": file.digest})


def forget_digest(conn: Connection, id: str) -> None:
    conn.execute(FORGET, {"id": id})


HAS_TABLES = """
SELECT to_regclass('_yoyo_migration') IS NOT NULL, to_regclass('arc_halo_migrations') IS NOT NULL
"""

MARKS = """
SELECT y.migration_id AS id, y.applied_at_utc AT TIME ZONE 'UTC' AS applied_at, m.sha256 AS digest
FROM _yoyo_migration AS y
LEFT JOIN arc_halo_migrations AS m USING (migration_id)
"""

YOYO_MARKS = """
SELECT migration_id AS id, applied_at_utc AT TIME ZONE 'UTC' AS applied_at, NULL::bytea AS digest
FROM _yoyo_migration
"""

RECORD = """
INSERT INTO arc_halo_migrations (migration_id, sha256, tool_version, duration_ms)
VALUES (%(id)s, %(digest)s, %(tool_version)s, %(duration_ms)s)
ON CONFLICT (migration_id) DO UPDATE
SET sha256 = excluded.sha256, tool_version = excluded.tool_version,
    duration_ms = excluded.duration_ms, applied_at = excluded.applied_at
"""

ACCEPT = """
UPDATE arc_halo_migrations SET sha256 = %(digest)s WHERE migration_id = %(id)s
"""

FORGET = """
DELETE FROM arc_halo_migrations WHERE migration_id = %(id)s
"""

_CREATE_TABLE = sql.SQL("""
CREATE TABLE arc_halo_migrations (
    migration_id text PRIMARY KEY,
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    tool_version text NOT NULL,
    duration_ms double precision,
    applied_at timestamptz NOT NULL DEFAULT now()
)
""")

_COMMENT_ON_TABLE = sql.SQL("""
COMMENT ON TABLE arc_halo_migrations IS
    'The migrations applied, each with the SHA-256 of its text, so that a later edit is noticed.'
""")


def _has_tables(conn: Connection) -> tuple[bool, bool]:
    with conn.cursor(row_factory=tuple_row) as cursor:
        yoyo, digests = cursor.execute(HAS_TABLES).fetchone() or (False, False)
    return bool(yoyo), bool(digests)
