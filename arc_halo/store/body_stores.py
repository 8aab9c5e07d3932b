"""SQL of the places outside of the database that hold bodies of chunks."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row, scalar_row

from arc_halo.store.rows import Connection

BY_URL = """
SELECT id, kind, url, marker, holder FROM body_stores WHERE url = %(url)s
"""

BY_MARKER = """
SELECT id, kind, url, marker, holder FROM body_stores WHERE marker::text = %(marker)s
"""

REGISTER = """
INSERT INTO body_stores (kind, url) VALUES (%(kind)s, %(url)s) ON CONFLICT (url) DO NOTHING
"""

MOVE = """
UPDATE body_stores SET url = %(url)s WHERE id = %(id)s
"""

FORGET = """
DELETE FROM body_stores AS store
WHERE id = %(id)s AND NOT EXISTS (SELECT FROM chunk_bodies AS r WHERE r.store_id = store.id)
"""

# A dump restored elsewhere, a database made from a template and a branch at Neon differ in one
# of the three; only a copy of a whole cluster's files does not.
HOLDER = """
SELECT (SELECT system_identifier FROM pg_control_system())::text
    || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())::text
    || coalesce('/' || nullif(current_setting('neon.timeline_id', true), ''), '')
"""

HOLD = """
UPDATE body_stores SET holder = %(holder)s WHERE id = %(id)s AND holder IS NULL
"""

HELD_BY = """
SELECT holder FROM body_stores WHERE id = %(id)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredStore:
    """A body store that this database knows; `marker` stands in the store too.

    `holder` is the database that uses it, None until one has opened it.
    """

    id: int
    kind: str
    url: str
    marker: UUID
    holder: str | None


def register(conn: Connection, *, kind: str, url: str) -> RegisteredStore:
    """The store at `url`, made known now unless it was."""
    found = by_url(conn, url)
    if found is None:
        conn.execute(REGISTER, {"kind": kind, "url": url})
        found = by_url(conn, url)
    assert found is not None
    return found


def by_url(conn: Connection, url: str) -> RegisteredStore | None:
    with conn.cursor(row_factory=class_row(RegisteredStore)) as cursor:
        return cursor.execute(BY_URL, {"url": url}).fetchone()


def by_marker(conn: Connection, marker: str) -> RegisteredStore | None:
    with conn.cursor(row_factory=class_row(RegisteredStore)) as cursor:
        return cursor.execute(BY_MARKER, {"marker": marker}).fetchone()


def move(conn: Connection, store: RegisteredStore, url: str) -> None:
    """Say that the store is at `url` now."""
    conn.execute(MOVE, {"id": store.id, "url": url})


def forget(conn: Connection, store: RegisteredStore) -> None:
    """Take back a registration, unless something is there by now."""
    conn.execute(FORGET, {"id": store.id})


def hold(conn: Connection, store: RegisteredStore) -> bool:
    """Whether this very database uses the store; from now on, if none has."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        holder = cursor.execute(HOLDER).fetchone()
        if store.holder is None:
            conn.execute(HOLD, {"id": store.id, "holder": holder})
            # Another program of this database may have been first.
            return cursor.execute(HELD_BY, {"id": store.id}).fetchone() == holder
    return store.holder == holder
