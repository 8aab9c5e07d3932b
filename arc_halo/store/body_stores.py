"""SQL of the places outside of the database that hold bodies of chunks."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row

from arc_halo.store.rows import Connection

BY_URL = """
SELECT id, kind, url, marker FROM body_stores WHERE url = %(url)s
"""

REGISTER = """
INSERT INTO body_stores (kind, url) VALUES (%(kind)s, %(url)s) ON CONFLICT (url) DO NOTHING
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredStore:
    """A body store that this database knows; `marker` stands in the store too."""

    id: int
    kind: str
    url: str
    marker: UUID


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
