"""SQL of aliases: which version `name:alias` stands for, and for which it ever stood."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection, as_bytes_or_none
from arc_halo.types import JsonObject

RELEASE_ALIASES = """
WITH desired AS (
    SELECT model_id, alias
    FROM jsonb_to_recordset(%(items)s) AS item (model_id uuid, alias text)
), released AS (
    DELETE FROM model_aliases AS held
    WHERE held.model_id = ANY(%(ids)s)
      AND NOT EXISTS (SELECT FROM desired
                      WHERE desired.model_id = held.model_id AND desired.alias = held.alias)
    RETURNING held.model_name, held.alias, held.model_id
)
UPDATE model_alias_history AS history
SET released_at = clock_timestamp()
FROM released
WHERE history.model_name = released.model_name AND history.alias = released.alias
  AND history.released_at IS NULL
"""

RELEASE_MOVED_ALIASES = """
WITH desired AS MATERIALIZED (
    SELECT model.id, model.model_name, item.alias
    FROM jsonb_to_recordset(%(items)s) AS item (model_id uuid, alias text)
    JOIN models AS model ON model.id = item.model_id
)
UPDATE model_alias_history AS history
SET released_at = clock_timestamp()
FROM desired
WHERE history.model_name = desired.model_name AND history.alias = desired.alias
  AND history.released_at IS NULL AND history.model_id IS DISTINCT FROM desired.id
"""

ASSIGN_ALIASES = """
INSERT INTO model_aliases (model_name, alias, model_id)
SELECT model.model_name, item.alias, model.id
FROM jsonb_to_recordset(%(items)s) AS item (model_id uuid, alias text)
JOIN models AS model ON model.id = item.model_id
ON CONFLICT (model_name, alias) DO UPDATE SET model_id = excluded.model_id
WHERE model_aliases.model_id <> excluded.model_id
"""

KEEP_ALIAS_HISTORY = """
INSERT INTO model_alias_history (model_name, alias, model_id, version, assigned_at)
SELECT model.model_name, item.alias, model.id, model.version, clock_timestamp()
FROM jsonb_to_recordset(%(items)s) AS item (model_id uuid, alias text)
JOIN models AS model ON model.id = item.model_id
ON CONFLICT (model_name, alias) WHERE released_at IS NULL DO NOTHING
"""

RELEASE_RENAMED_ALIASES = """
UPDATE model_alias_history AS history SET released_at = clock_timestamp()
FROM models AS model
WHERE model.id = history.model_id
  AND (history.model_name, history.version) <> (model.model_name, model.version)
  AND history.released_at IS NULL
"""

RELEASE_DELETED_ALIASES = """
UPDATE model_alias_history AS history SET released_at = clock_timestamp()
FROM unnest(%(names)s::text[], %(versions)s::text[]) AS item (name, version)
JOIN models AS model ON model.model_name = item.name AND model.version = item.version
WHERE history.model_id = model.id AND history.released_at IS NULL
"""

RENAME_ALIASES = """
UPDATE model_aliases AS alias SET model_name = model.model_name
FROM models AS model WHERE model.id = alias.model_id AND alias.model_name <> model.model_name
"""

FOREIGN_ALIASES = """
SELECT alias.model_name || ':' || alias.alias AS alias,
       model.model_name || '@' || model.version AS model, managed.project
FROM unnest(%(names)s::text[], %(aliases)s::text[]) AS item (name, alias)
JOIN model_aliases AS alias ON alias.model_name = item.name AND alias.alias = item.alias
JOIN models AS model ON model.id = alias.model_id
LEFT JOIN managed_resources AS managed
  ON managed.kind = 'model' AND managed.name = model.model_name || '@' || model.version
WHERE managed.project IS DISTINCT FROM %(project)s
ORDER BY alias.model_name, alias.alias
"""

BY_ALIAS = """
SELECT alias.model_name, alias.alias, model.version, model.model_type, model.architecture_config,
       sets.root, CASE WHEN model.tokenizer_digest IS NOT NULL THEN jsonb_build_object(
           'digest', 'sha256:' || encode(model.tokenizer_digest, 'hex'),
           'source', model.tokenizer_source) END
FROM unnest(%(names)s::text[], %(aliases)s::text[]) AS item (name, alias)
JOIN model_aliases AS alias ON alias.model_name = item.name AND alias.alias = item.alias
JOIN models AS model ON model.id = alias.model_id
LEFT JOIN weight_sets AS sets ON sets.id = model.weight_set_id
"""

OF_MODELS = """
SELECT model.model_name || '@' || model.version, min(alias.alias COLLATE "C")
FROM unnest(%(names)s::text[], %(versions)s::text[]) AS item (name, version)
JOIN models AS model ON model.model_name = item.name AND model.version = item.version
JOIN model_aliases AS alias ON alias.model_id = model.id
GROUP BY 1
"""

# The root that the version had at the moment asked for, or else at the end of its time.
HISTORY = """
SELECT period.version, period.assigned_at, period.released_at, weights.root
FROM model_alias_history AS period
LEFT JOIN LATERAL (
    SELECT had.root FROM model_weight_history AS had
    WHERE had.model_id = period.model_id
      AND had.assigned_at <= coalesce(%(at)s::timestamptz, period.released_at, 'infinity')
    ORDER BY had.id DESC LIMIT 1
) AS weights ON true
WHERE period.model_name = %(name)s AND period.alias = %(alias)s
  AND (%(at)s::timestamptz IS NULL
       OR period.assigned_at <= %(at)s::timestamptz
          AND (period.released_at IS NULL OR period.released_at > %(at)s::timestamptz))
ORDER BY period.assigned_at DESC, period.id DESC
"""

EVER = """
SELECT DISTINCT model_name || ':' || alias FROM model_alias_history
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasPeriod:
    """From when to when an alias stood for a version; `released_at` None means that it does.

    `root` is that of the version's weights, where it has any and was not deleted since.
    """

    version: str
    assigned_at: datetime
    released_at: datetime | None
    root: bytes | None


def replace(conn: Connection, ids: Sequence[UUID], items: Sequence[JsonObject]) -> None:
    """Make the models `ids` hold exactly the aliases of `items`, keeping their history."""
    params = {"ids": list(ids), "items": Jsonb(items)}
    conn.execute(RELEASE_ALIASES, params)
    if items:
        conn.execute(RELEASE_MOVED_ALIASES, params)
        conn.execute(ASSIGN_ALIASES, params)
        conn.execute(KEEP_ALIAS_HISTORY, params)


def history(
    conn: Connection, name: str, alias: str, *, at: datetime | None = None
) -> list[AliasPeriod]:
    """The versions that `name:alias` stood for, the latest first; or the one at that moment."""
    params = {"name": name, "alias": alias, "at": at}
    with conn.cursor(row_factory=class_row(AliasPeriod)) as cursor:
        return cursor.execute(HISTORY, params).fetchall()


def ever(conn: Connection) -> set[str]:
    """Every alias that there is or was, as `name:alias`."""
    return {str(alias) for (alias,) in conn.execute(EVER)}


def of_models(conn: Connection, models: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """One alias of each model (`names`, `versions`) that has any, by full name."""
    rows = conn.execute(OF_MODELS, models).fetchall()
    return {str(name): str(alias) for name, alias in rows}


def follow_renames(conn: Connection) -> None:
    """Move the aliases of renamed models to their new name; the old name's history ends."""
    conn.execute(RENAME_ALIASES)
    conn.execute(RELEASE_RENAMED_ALIASES)


def release_deleted(conn: Connection, models: Mapping[str, Sequence[str]]) -> None:
    """End the history of the aliases of models about to be deleted (`names`, `versions`)."""
    conn.execute(RELEASE_DELETED_ALIASES, models)


def foreign(
    conn: Connection, project: str, pairs: Iterable[tuple[str, str]]
) -> list[tuple[str, str, str | None]]:
    """(alias, model, owner) of the aliases (name, alias) that stand for models not `project`'s."""
    listed = list(pairs)
    params = {
        "project": project,
        "names": [name for name, _ in listed],
        "aliases": [alias for _, alias in listed],
    }
    rows = conn.execute(FOREIGN_ALIASES, params).fetchall()
    return [(str(alias), str(model), owner) for alias, model, owner in rows]


def find(
    conn: Connection, pairs: Iterable[tuple[str, str]]
) -> list[tuple[str, str, str, str, JsonObject, bytes | None, JsonObject | None]]:
    """(name, alias, version, type, architecture, root, tokenizer) of the aliases that exist."""
    listed = list(pairs)
    rows = conn.execute(
        BY_ALIAS, {"names": [n for n, _ in listed], "aliases": [a for _, a in listed]}
    ).fetchall()
    return [
        (
            str(name),
            str(alias),
            str(version),
            str(type_),
            architecture,
            as_bytes_or_none(root),
            tokenizer if isinstance(tokenizer, dict) else None,
        )
        for name, alias, version, type_, architecture, root, tokenizer in rows
        if isinstance(architecture, dict)
    ]
