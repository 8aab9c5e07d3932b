"""SQL of declared fusion strategies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection, LiveRow, as_uuid
from arc_halo.types import JsonObject

LIVE = """
SELECT name, id, md5(ROW(uses, params, description, tags)::text) AS digest
FROM fusion_strategies WHERE name = ANY(%(names)s)
"""

LIVE_SPECS = """
SELECT name, jsonb_build_object('uses', uses, 'params', params, 'description', description,
                                'tags', tags) AS spec
FROM fusion_strategies WHERE name = ANY(%(names)s)
"""

UPSERT = """
INSERT INTO fusion_strategies (name, uses, params, description, tags)
SELECT item.name, item.uses, item.params, item.description, item.tags
FROM jsonb_to_recordset(%(items)s) AS item (
    name text, uses text, params jsonb, description text, tags jsonb)
ON CONFLICT (name) DO UPDATE
SET uses = excluded.uses, params = excluded.params, description = excluded.description,
    tags = excluded.tags
RETURNING name, id
"""

RENAME = """
UPDATE fusion_strategies SET name = %(new)s WHERE name = %(old)s
"""

DELETE = """
DELETE FROM fusion_strategies WHERE name = ANY(%(names)s)
"""


def live(conn: Connection, names: Iterable[str]) -> dict[str, LiveRow]:
    with conn.cursor(row_factory=class_row(LiveRow)) as cursor:
        return {row.name: row for row in cursor.execute(LIVE, {"names": list(names)})}


def live_specs(conn: Connection, names: Iterable[str]) -> dict[str, JsonObject]:
    rows = conn.execute(LIVE_SPECS, {"names": list(names)}).fetchall()
    return {str(name): spec for name, spec in rows if isinstance(spec, dict)}


def upsert(conn: Connection, items: Sequence[JsonObject]) -> dict[str, UUID]:
    rows = conn.execute(UPSERT, {"items": Jsonb(items)}).fetchall()
    return {str(name): as_uuid(id_) for name, id_ in rows}


def rename(conn: Connection, old: str, new: str) -> None:
    conn.execute(RENAME, {"old": old, "new": new})


def delete(conn: Connection, names: Iterable[str]) -> None:
    conn.execute(DELETE, {"names": list(names)})
