"""The migration that is being run outside of a transaction, or was when its program died.

Such a migration cannot hold the migrations' lock while it runs: the lock ends with a transaction,
and CREATE INDEX CONCURRENTLY would wait for one. What keeps others away is the row of
`arc_halo_migrations_begun`: it names the server's session that runs the migration, so everybody
can see whether it is still there. A program that is killed leaves the row, and no lock to break.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg import sql
from psycopg.rows import class_row, scalar_row

from arc_halo.errors import DatabaseError
from arc_halo.store.connection import Connection

Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """How far a migration has come.

    `is_settled` says that the statement after the `statements_done` first surely had no effect.
    """

    id: str
    direction: Direction
    digest: bytes
    statements_done: int
    is_settled: bool
    begun_at: datetime
    host: str
    pid: int
    is_running: bool
    """Whether the session is still there, and not this one."""


def read_begun(conn: Connection) -> Begun | None:
    """The migration that was begun and not finished, if any. Only reads; works on any database."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        if not cursor.execute(HAS_TABLE).fetchone():
            return None
    with conn.cursor(row_factory=class_row(Begun)) as cursor:
        return cursor.execute(BEGUN).fetchone()


def ensure_begun_table(conn: Connection) -> None:
    with conn.cursor(row_factory=scalar_row) as cursor:
        if not cursor.execute(HAS_TABLE).fetchone():
            for statement in _CREATE_TABLE:
                conn.execute(statement)


def begin(conn: Connection, id: str, direction: Direction, digest: bytes) -> None:
    """Say that this session runs the migration now, from where an earlier one left it."""
    conn.execute(
        BEGIN,
        {"id": id, "direction": direction, "digest": digest, "host": socket.gethostname()},
    )


def note_done(conn: Connection, id: str, statements: int) -> None:
    """Say that so many statements have had their effect, and the next may be tried any moment."""
    _note(conn, id, statements, is_settled=False)


def note_failed(conn: Connection, id: str, statements: int) -> None:
    """Say that the statement after these failed, and so had no effect."""
    _note(conn, id, statements, is_settled=True)


def settle(
    conn: Connection, id: str, *, digest: bytes, statements_done: int, is_settled: bool
) -> None:
    """Say what somebody found out about a migration that was interrupted."""
    facts = {"id": id, "digest": digest, "done": statements_done, "is_settled": is_settled}
    conn.execute(SETTLE, facts)


def finish(conn: Connection, id: str) -> None:
    """Take the row away, in the transaction that marks the migration. Raises if it is another's."""
    _check_ours(id, conn.execute(FINISH, {"id": id}).rowcount)


def release(conn: Connection, id: str) -> None:
    """Say that this session goes on with it no more, though it may live on."""
    conn.execute(RELEASE, {"id": id})


def forget_begun(conn: Connection, id: str) -> None:
    """Take the row away, whosever it is."""
    conn.execute(FORGET, {"id": id})


HAS_TABLE = """
SELECT to_regclass('arc_halo_migrations_begun') IS NOT NULL
"""

# When another role's session began is hidden from roles without pg_read_all_stats; its pid is not.
BEGUN = """
SELECT b.migration_id AS id, b.direction, b.sha256 AS digest, b.statements_done, b.is_settled,
       b.begun_at, b.host, b.pid,
       b.pid <> pg_backend_pid() AND EXISTS (
           SELECT FROM pg_stat_activity AS a
           WHERE a.pid = b.pid AND coalesce(a.backend_start = b.backend_start, true)
             AND coalesce(a.datname = current_database(), true)) AS is_running
FROM arc_halo_migrations_begun AS b
"""

BEGIN = """
INSERT INTO arc_halo_migrations_begun AS old
    (migration_id, direction, sha256, host, pid, backend_start)
SELECT %(id)s, %(direction)s, %(digest)s, %(host)s, pid, backend_start
FROM pg_stat_activity WHERE pid = pg_backend_pid()
ON CONFLICT (migration_id) DO UPDATE
SET direction = excluded.direction, sha256 = excluded.sha256, host = excluded.host,
    pid = excluded.pid, backend_start = excluded.backend_start,
    statements_done = CASE WHEN old.direction = excluded.direction THEN old.statements_done ELSE 0
                      END,
    is_settled = old.is_settled AND old.direction = excluded.direction
"""

NOTE = """
UPDATE arc_halo_migrations_begun
SET statements_done = %(done)s, is_settled = %(is_settled)s
WHERE migration_id = %(id)s AND pid = pg_backend_pid()
"""

SETTLE = """
UPDATE arc_halo_migrations_begun
SET sha256 = %(digest)s, statements_done = %(done)s, is_settled = %(is_settled)s
WHERE migration_id = %(id)s
"""

FINISH = """
DELETE FROM arc_halo_migrations_begun WHERE migration_id = %(id)s AND pid = pg_backend_pid()
"""

RELEASE = """
UPDATE arc_halo_migrations_begun SET pid = 0
WHERE migration_id = %(id)s AND pid = pg_backend_pid()
"""

FORGET = """
DELETE FROM arc_halo_migrations_begun WHERE migration_id = %(id)s
"""

_CREATE_TABLE = (
    sql.SQL("""
    CREATE TABLE arc_halo_migrations_begun (
        migration_id text PRIMARY KEY,
        direction text NOT NULL CHECK (direction IN ('up', 'down')),
        sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
        statements_done integer NOT NULL DEFAULT 0 CHECK (statements_done >= 0),
        is_settled boolean NOT NULL DEFAULT false,
        host text NOT NULL,
        pid integer NOT NULL,
        backend_start timestamptz NOT NULL,
        begun_at timestamptz NOT NULL DEFAULT now()
    )
    """),
    sql.SQL("""
    COMMENT ON TABLE arc_halo_migrations_begun IS
        'The migration that runs outside of a transaction now, or was interrupted; else empty.'
    """),
    sql.SQL("""
    COMMENT ON COLUMN arc_halo_migrations_begun.statements_done IS
        'How many of its statements have had their effect.'
    """),
    sql.SQL("""
    COMMENT ON COLUMN arc_halo_migrations_begun.is_settled IS
        'The next statement failed and had no effect; else only looking can tell.'
    """),
    sql.SQL("""
    COMMENT ON COLUMN arc_halo_migrations_begun.pid IS
        'The session that runs it, with the time it began: gone from pg_stat_activity, it died.'
    """),
)


def _note(conn: Connection, id: str, statements: int, *, is_settled: bool) -> None:
    facts = {"id": id, "done": statements, "is_settled": is_settled}
    _check_ours(id, conn.execute(NOTE, facts).rowcount)


def _check_ours(id: str, rows: int) -> None:
    if rows != 1:
        raise DatabaseError(
            f"{id} is not this session's any more",
            hint="another took it over, or a pooler changes sessions: migrate on a direct address, "
            "and see `arc-halo migrate status`",
        )
