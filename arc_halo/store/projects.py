"""SQL of projects: what each manages, and how far it has come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject, Key

HEAD = """
SELECT name, head_revision, manifest_digest FROM projects WHERE name = %(project)s
"""

LOCK_HEAD = """
SELECT name, head_revision, manifest_digest FROM projects WHERE name = %(project)s FOR UPDATE
"""

ENSURE = """
INSERT INTO projects (name) VALUES (%(project)s) ON CONFLICT (name) DO NOTHING
"""

MANAGED = """
SELECT managed.kind, managed.name, managed.project, managed.resource_id, managed.spec_digest,
       managed.live_digest, managed.protected, managed.deletion, managed.ignored
FROM managed_resources AS managed
WHERE managed.project = %(project)s
   OR (managed.kind, managed.name) IN (
       SELECT item.kind, item.name
       FROM unnest(%(kinds)s::text[], %(names)s::text[]) AS item (kind, name))
"""

MANAGED_SPECS = """
SELECT managed.kind, managed.name, managed.spec
FROM unnest(%(kinds)s::text[], %(names)s::text[]) AS item (kind, name)
JOIN managed_resources AS managed ON managed.kind = item.kind AND managed.name = item.name
"""

IGNORED = """
SELECT managed.kind, managed.name, managed.ignored
FROM unnest(%(kinds)s::text[], %(names)s::text[]) AS item (kind, name)
JOIN managed_resources AS managed ON managed.kind = item.kind AND managed.name = item.name
"""

UPSERT_MANAGED = """
INSERT INTO managed_resources (kind, name, project, resource_id, spec, spec_digest, live_digest,
                               protected, deletion, ignored, tags, source_file, created_revision,
                               updated_revision)
SELECT item.kind, item.name, %(project)s, item.resource_id, item.spec,
       decode(item.spec_digest, 'hex'), item.live_digest, item.protected, item.deletion,
       item.ignored,
       coalesce(item.tags, '{}'::jsonb), item.source_file, %(revision)s, %(revision)s
FROM jsonb_to_recordset(%(items)s) AS item (
    kind text, name text, resource_id uuid, spec jsonb, spec_digest text, live_digest text,
    protected boolean, deletion text, ignored text[], tags jsonb, source_file text)
ON CONFLICT (kind, name) DO UPDATE
SET resource_id = excluded.resource_id, spec = excluded.spec,
    spec_digest = excluded.spec_digest, live_digest = excluded.live_digest,
    protected = excluded.protected, deletion = excluded.deletion, ignored = excluded.ignored,
    tags = excluded.tags,
    source_file = excluded.source_file, updated_revision = excluded.updated_revision
WHERE managed_resources.project = excluded.project
"""

RENAME_MANAGED = """
UPDATE managed_resources SET name = %(new)s WHERE kind = %(kind)s AND name = %(old)s
"""

NAMING = """
SELECT managed.kind, managed.name, managed.live_digest
FROM managed_resources AS managed
WHERE EXISTS (SELECT FROM jsonb_path_query(managed.spec, '$.** ? (@.type() == "string")') AS text
              WHERE text #>> '{}' = ANY(%(names)s::text[]))
ORDER BY managed.kind, managed.name
"""

NOTE_LIVE_DIGESTS = """
UPDATE managed_resources AS managed SET live_digest = item.live_digest
FROM unnest(%(kinds)s::text[], %(names)s::text[], %(digests)s::text[])
     AS item (kind, name, live_digest)
WHERE managed.kind = item.kind AND managed.name = item.name
"""

DELETE_MANAGED = """
DELETE FROM managed_resources AS managed
USING unnest(%(kinds)s::text[], %(names)s::text[]) AS item (kind, name)
WHERE managed.kind = item.kind AND managed.name = item.name AND managed.project = %(project)s
"""

LIST_MANAGED = """
SELECT managed.kind, managed.name, managed.project, managed.protected, managed.source_file,
       managed.updated_revision, managed.updated_at
FROM managed_resources AS managed
WHERE (%(kind)s::text IS NULL OR managed.kind = %(kind)s)
  AND (%(name)s::text IS NULL OR managed.name = %(name)s)
  AND (%(project)s::text IS NULL OR managed.project = %(project)s)
ORDER BY managed.kind, managed.name
"""


LIST_UNMANAGED = """
SELECT found.kind, found.name
FROM (SELECT 'model' AS kind, model_name || '@' || version AS name FROM models
      UNION ALL SELECT 'strategy', name FROM fusion_strategies
      UNION ALL SELECT 'reactor', reactor_name FROM cognitive_fusion_reactors
      UNION ALL SELECT 'training', name FROM training_definitions
      UNION ALL SELECT 'inference', name FROM cache_policies) AS found
WHERE (%(kind)s::text IS NULL OR found.kind = %(kind)s)
  AND NOT EXISTS (SELECT FROM managed_resources AS managed
                  WHERE managed.kind = found.kind AND managed.name = found.name)
ORDER BY found.kind, found.name
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where a project stands; revision 0 before its first apply."""

    name: str
    head_revision: int
    manifest_digest: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Managed:
    """A managed resource without its document: owner and digests of what was applied last."""

    kind: str
    name: str
    project: str
    resource_id: UUID | None
    spec_digest: bytes
    live_digest: str
    protected: bool
    deletion: str
    ignored: list[str]

    @property
    def key(self) -> Key:
        return Key(kind=self.kind, name=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedRow:
    """A managed resource as lists show it."""

    kind: str
    name: str
    project: str
    protected: bool
    source_file: str | None
    updated_revision: int
    updated_at: datetime


def head(conn: Connection, project: str, *, lock: bool = False) -> Head:
    """The project's head, locked against other applies until the transaction ends if asked."""
    with conn.cursor(row_factory=class_row(Head)) as cursor:
        found = cursor.execute(LOCK_HEAD if lock else HEAD, {"project": project}).fetchone()
    return found or Head(name=project, head_revision=0, manifest_digest=None)


def ensure(conn: Connection, project: str) -> None:
    conn.execute(ENSURE, {"project": project})


def managed(conn: Connection, project: str, keys: Iterable[Key]) -> dict[Key, Managed]:
    """What `project` manages, and who manages the resources `keys`."""
    with conn.cursor(row_factory=class_row(Managed)) as cursor:
        rows = cursor.execute(MANAGED, {"project": project, **_split(keys)})
        return {row.key: row for row in rows}


def managed_specs(conn: Connection, keys: Iterable[Key]) -> dict[Key, JsonObject]:
    """The last applied documents of `keys`."""
    rows = conn.execute(MANAGED_SPECS, _split(keys)).fetchall()
    return {
        Key(kind=str(kind), name=str(name)): spec
        for kind, name, spec in rows
        if isinstance(spec, dict)
    }


def ignored(conn: Connection, keys: Iterable[Key]) -> dict[Key, list[str]]:
    """The fields of `keys` that something else may change."""
    rows = conn.execute(IGNORED, _split(keys)).fetchall()
    return {
        Key(kind=str(kind), name=str(name)): fields
        for kind, name, fields in rows
        if isinstance(fields, list)
    }


def upsert_managed(
    conn: Connection, project: str, revision: int, items: Sequence[JsonObject]
) -> int:
    """Record what was applied; returns how many rows are this project's now."""
    params = {"project": project, "revision": revision, "items": Jsonb(items)}
    return conn.execute(UPSERT_MANAGED, params).rowcount


def rename_managed(conn: Connection, kind: str, old: str, new: str) -> None:
    conn.execute(RENAME_MANAGED, {"kind": kind, "old": old, "new": new})


def naming(conn: Connection, names: Sequence[str]) -> dict[Key, str]:
    """The managed resources whose documents name one of `names`, with their recorded digests."""
    rows = conn.execute(NAMING, {"names": list(names)}).fetchall()
    return {Key(kind=str(kind), name=str(name)): str(digest) for kind, name, digest in rows}


def note_live_digests(conn: Connection, digests: Mapping[Key, str]) -> None:
    """Take the rows of managed resources for what was applied."""
    if digests:
        params = {**_split(digests), "digests": list(digests.values())}
        conn.execute(NOTE_LIVE_DIGESTS, params)


def delete_managed(conn: Connection, project: str, keys: Iterable[Key]) -> None:
    conn.execute(DELETE_MANAGED, {"project": project, **_split(keys)})


def list_managed(
    conn: Connection,
    *,
    kind: str | None = None,
    name: str | None = None,
    project: str | None = None,
) -> list[ManagedRow]:
    with conn.cursor(row_factory=class_row(ManagedRow)) as cursor:
        params = {"kind": kind, "name": name, "project": project}
        return cursor.execute(LIST_MANAGED, params).fetchall()


def list_unmanaged(conn: Connection, *, kind: str | None = None) -> list[Key]:
    """Resources of every kind that no project manages."""
    rows = conn.execute(LIST_UNMANAGED, {"kind": kind}).fetchall()
    return [Key(kind=str(kind_), name=str(name)) for kind_, name in rows]


def _split(keys: Iterable[Key]) -> dict[str, list[str]]:
    listed = list(keys)
    return {"kinds": [key.kind for key in listed], "names": [key.name for key in listed]}
