"""SQL of reactors, their members and interactions, and of what they did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row, dict_row, scalar_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection, LiveRow, as_uuid
from arc_halo.types import JsonObject

RECIPE_FIELDS = ("tensors", "slices", "compute", "out_dtype", "tokenizer")
"""The fields of a spec that the column `recipe` holds."""

SPECS = """
SELECT reactor.id, reactor.reactor_name AS name,
       jsonb_build_object(
           'type', reactor.reactor_type,
           'strategy', reactor.strategy_name,
           'uses', reactor.strategy_uses,
           'params', reactor.params,
           'members', coalesce(members.list, '[]'::jsonb),
           'base', base.model_name || '@' || base.version,
           'interactions', coalesce(edges.list, '[]'::jsonb),
           'produces', produced.model_name || '@' || produced.version,
           'run', reactor.run,
           'config', reactor.config,
           'description', reactor.description,
           'tags', reactor.tags) || reactor.recipe AS spec
FROM cognitive_fusion_reactors AS reactor
LEFT JOIN models AS base ON base.id = reactor.base_model_id
LEFT JOIN models AS produced ON produced.id = reactor.produces_model_id
LEFT JOIN (
    SELECT member.reactor_id, jsonb_agg(jsonb_build_object(
               'model', model.model_name || '@' || model.version, 'role', member.role,
               'weight', member.weight, 'priority', member.priority,
               'cost', member.cost, 'domains', to_jsonb(member.domains),
               'adapters', coalesce(adapters.list, '[]'::jsonb)) ORDER BY member.ordinal)
               AS list
    FROM reactor_models AS member JOIN models AS model ON model.id = member.model_id
    LEFT JOIN (
        SELECT used.reactor_id, used.model_id, jsonb_agg(jsonb_build_object(
                   'model', adapter.model_name || '@' || adapter.version,
                   'scale', used.scale) ORDER BY used.ordinal) AS list
        FROM reactor_adapters AS used JOIN models AS adapter ON adapter.id = used.adapter_id
        GROUP BY used.reactor_id, used.model_id
    ) AS adapters ON adapters.reactor_id = member.reactor_id
                 AND adapters.model_id = member.model_id
    GROUP BY member.reactor_id
) AS members ON members.reactor_id = reactor.id
LEFT JOIN (
    SELECT edge.reactor_id, jsonb_agg(jsonb_build_object(
               'from', source.model_name || '@' || source.version,
               'to', target.model_name || '@' || target.version,
               'kind', edge.interaction_kind, 'weight', edge.weight) ORDER BY edge.id) AS list
    FROM model_interaction_graph AS edge
    JOIN models AS source ON source.id = edge.from_model_id
    JOIN models AS target ON target.id = edge.to_model_id
    GROUP BY edge.reactor_id
) AS edges ON edges.reactor_id = reactor.id
WHERE reactor.reactor_name = ANY(%(names)s)
"""

LIVE = f"""
SELECT live.name, live.id, md5(live.spec::text) AS digest FROM ({SPECS}) AS live
"""  # noqa: S608  both are constants of this module

LIVE_SPECS = f"""
SELECT live.name, live.spec FROM ({SPECS}) AS live
"""  # noqa: S608  both are constants of this module

UPSERT = """
INSERT INTO cognitive_fusion_reactors (reactor_name, reactor_type, strategy_name, strategy_uses,
                                       params, base_model_id, produces_model_id, recipe, run,
                                       config, description, tags, status)
SELECT item.name, item.type, item.strategy, item.uses, item.params, base.id, produced.id,
       item.recipe, item.run, item.config, item.description, item.tags, item.status
FROM jsonb_to_recordset(%(items)s) AS item (
    name text, type text, strategy text, uses text, params jsonb, base text, produces text,
    recipe jsonb, run jsonb, config jsonb, description text, tags jsonb, status text)
LEFT JOIN models AS base
  ON base.model_name = split_part(item.base, '@', 1)
 AND base.version = split_part(item.base, '@', 2)
LEFT JOIN models AS produced
  ON produced.model_name = split_part(item.produces, '@', 1)
 AND produced.version = split_part(item.produces, '@', 2)
ON CONFLICT (reactor_name) DO UPDATE
SET reactor_type = excluded.reactor_type, strategy_name = excluded.strategy_name,
    strategy_uses = excluded.strategy_uses, params = excluded.params,
    base_model_id = excluded.base_model_id, produces_model_id = excluded.produces_model_id,
    recipe = excluded.recipe, run = excluded.run, config = excluded.config,
    description = excluded.description, tags = excluded.tags,
    status = CASE WHEN cognitive_fusion_reactors.status IN ('registered', 'ready')
                  THEN excluded.status ELSE cognitive_fusion_reactors.status END
RETURNING reactor_name, id
"""

DELETE_INTERACTIONS = """
DELETE FROM model_interaction_graph WHERE reactor_id = ANY(%(ids)s)
"""

DELETE_MEMBERS = """
DELETE FROM reactor_models WHERE reactor_id = ANY(%(ids)s)
"""

INSERT_MEMBERS = """
INSERT INTO reactor_models (reactor_id, model_id, ordinal, role, weight, priority, cost, domains)
SELECT item.reactor_id, model.id, item.ordinal, item.role, item.weight, item.priority, item.cost,
       item.domains
FROM jsonb_to_recordset(%(items)s) AS item (
    reactor_id uuid, model text, ordinal int, role text, weight double precision, priority int,
    cost double precision, domains text[])
JOIN models AS model
  ON model.model_name = split_part(item.model, '@', 1)
 AND model.version = split_part(item.model, '@', 2)
"""

INSERT_ADAPTERS = """
INSERT INTO reactor_adapters (reactor_id, model_id, ordinal, adapter_id, scale)
SELECT item.reactor_id, member.id, used.ordinal - 1, adapter.id, used.scale
FROM jsonb_to_recordset(%(items)s) AS item (reactor_id uuid, model text, adapters jsonb)
JOIN models AS member
  ON member.model_name = split_part(item.model, '@', 1)
 AND member.version = split_part(item.model, '@', 2)
CROSS JOIN ROWS FROM (
    jsonb_to_recordset(item.adapters) AS (model text, scale double precision)
) WITH ORDINALITY AS used (model, scale, ordinal)
JOIN models AS adapter
  ON adapter.model_name = split_part(used.model, '@', 1)
 AND adapter.version = split_part(used.model, '@', 2)
"""

INSERT_INTERACTIONS = """
INSERT INTO model_interaction_graph (reactor_id, from_model_id, to_model_id, interaction_kind,
                                     weight)
SELECT item.reactor_id, source.id, target.id, item.kind, item.weight
FROM jsonb_to_recordset(%(items)s) AS item (
    reactor_id uuid, ordinal int, "from" text, "to" text, kind text, weight double precision)
JOIN models AS source
  ON source.model_name = split_part(item."from", '@', 1)
 AND source.version = split_part(item."from", '@', 2)
JOIN models AS target
  ON target.model_name = split_part(item."to", '@', 1)
 AND target.version = split_part(item."to", '@', 2)
ORDER BY item.reactor_id, item.ordinal
"""

RENAME = """
UPDATE cognitive_fusion_reactors SET reactor_name = %(new)s WHERE reactor_name = %(old)s
"""

DELETE = """
DELETE FROM cognitive_fusion_reactors WHERE reactor_name = ANY(%(names)s)
"""

INSERT_MERGE = """
INSERT INTO fusion_operations (reactor_id, reactor_name, operation_type, status, strategy_name,
                               strategy_version, params, recipe_key, build_id, output_model_id,
                               output_model_name, output_model_version, output_root,
                               tensor_count, size_bytes, started_at, finished_at)
SELECT reactor.id, %(reactor)s, 'merge', 'completed', %(strategy)s, %(strategy_version)s,
       %(params)s, %(recipe_key)s, build.id, model.id, %(model_name)s, %(model_version)s,
       sets.root, sets.tensor_count, sets.size_bytes, build.started_at, build.finished_at
FROM weight_builds AS build
JOIN weight_sets AS sets ON sets.id = build.weight_set_id
LEFT JOIN cognitive_fusion_reactors AS reactor ON reactor.reactor_name = %(reactor)s
LEFT JOIN models AS model
  ON model.model_name = %(model_name)s AND model.version = %(model_version)s
WHERE build.recipe_key = %(recipe_key)s
  AND NOT EXISTS (SELECT FROM fusion_operations AS known
                  WHERE known.recipe_key = %(recipe_key)s AND known.output_model_id = model.id)
RETURNING id
"""

INSERT_INPUTS = """
INSERT INTO fusion_operation_inputs (operation_id, ordinal, model_name, model_version, root, role,
                                     is_base, weight)
SELECT %(operation_id)s, item.ordinal, item.model_name, item.model_version,
       decode(item.root, 'hex'), item.role, item.is_base, item.weight
FROM jsonb_to_recordset(%(items)s) AS item (
    ordinal int, model_name text, model_version text, root text, role text, is_base boolean,
    weight double precision)
"""

# Whoever collects the set has deleted it or leaves it alone until the transaction ends.
POINT_TO_FIT = """
WITH fit AS (SELECT id FROM weight_sets WHERE root = %(root)s FOR KEY SHARE)
UPDATE cognitive_fusion_reactors AS reactor SET fitted_set_id = fit.id
FROM fit WHERE reactor.reactor_name = %(name)s
RETURNING reactor.id
"""

FITTED_SET = """
SELECT fitted_set_id FROM cognitive_fusion_reactors WHERE reactor_name = %(name)s
"""

FITTED_NAMES = """
SELECT reactor_name FROM cognitive_fusion_reactors
WHERE reactor_name = ANY(%(names)s) AND fitted_set_id IS NOT NULL
ORDER BY reactor_name
"""

STATUS = """
SELECT status.*, run.*
FROM v_reactor_status AS status
CROSS JOIN LATERAL (
    SELECT
        count(*) AS run_count,
        count(*) FILTER (WHERE x.status = 'failed') AS failed_run_count,
        (avg(extract(epoch FROM x.finished_at - x.started_at))
            FILTER (WHERE x.status = 'completed'))::double precision AS mean_run_seconds
    FROM fusion_operations AS x
    WHERE x.reactor_id = status.reactor_id AND x.operation_type <> 'evaluation'
) AS run
WHERE %(name)s::text IS NULL OR reactor_name = %(name)s
ORDER BY reactor_name
"""

LINEAGE = """
SELECT operation.id, operation.output_model_id AS model_id, operation.reactor_name AS reactor,
       operation.output_model_name || '@' || operation.output_model_version AS model,
       operation.output_root AS root, operation.strategy_name AS strategy,
       operation.strategy_version, operation.params, operation.tensor_count,
       operation.finished_at,
       coalesce((SELECT jsonb_agg(jsonb_build_object(
                     'model', input.model_name || '@' || input.model_version,
                     'root', 'sha256:' || encode(input.root, 'hex'), 'role', input.role,
                     'is_base', input.is_base, 'weight', input.weight) ORDER BY input.ordinal)
                 FROM fusion_operation_inputs AS input WHERE input.operation_id = operation.id),
                '[]'::jsonb) AS inputs
FROM fusion_operations AS operation
WHERE operation.output_root = %(root)s AND operation.operation_type = 'merge'
ORDER BY operation.created_at DESC
"""


MADE_OF = """
SELECT DISTINCT operation.output_model_name || '@' || operation.output_model_version AS model,
       'sha256:' || encode(operation.output_root, 'hex') AS root,
       operation.strategy_name AS strategy
FROM fusion_operation_inputs AS input
JOIN fusion_operations AS operation ON operation.id = input.operation_id
WHERE input.root = %(root)s AND operation.operation_type = 'merge'
  AND operation.status = 'completed'
ORDER BY model, root
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """How a merged set of weights was made."""

    id: UUID
    model_id: UUID | None
    reactor: str | None
    model: str | None
    root: bytes | None
    strategy: str
    strategy_version: str | None
    params: JsonObject
    tensor_count: int | None
    finished_at: datetime | None
    inputs: list[JsonObject]


def live(conn: Connection, names: Iterable[str]) -> dict[str, LiveRow]:
    with conn.cursor(row_factory=class_row(LiveRow)) as cursor:
        return {row.name: row for row in cursor.execute(LIVE, {"names": list(names)})}


def live_specs(conn: Connection, names: Iterable[str]) -> dict[str, JsonObject]:
    rows = conn.execute(LIVE_SPECS, {"names": list(names)}).fetchall()
    return {str(name): spec for name, spec in rows if isinstance(spec, dict)}


def upsert(conn: Connection, items: Sequence[JsonObject]) -> dict[str, UUID]:
    rows = conn.execute(UPSERT, {"items": Jsonb(items)}).fetchall()
    return {str(name): as_uuid(id_) for name, id_ in rows}


def replace_members(
    conn: Connection,
    ids: Sequence[UUID],
    members: Sequence[JsonObject],
    interactions: Sequence[JsonObject],
) -> None:
    """Give the reactors `ids` exactly these members and interactions."""
    params = {"ids": list(ids)}
    conn.execute(DELETE_INTERACTIONS, params)
    conn.execute(DELETE_MEMBERS, params)
    conn.execute(INSERT_MEMBERS, {"items": Jsonb(members)})
    if any(member["adapters"] for member in members):
        conn.execute(INSERT_ADAPTERS, {"items": Jsonb(members)})
    if interactions:
        conn.execute(INSERT_INTERACTIONS, {"items": Jsonb(interactions)})


def rename(conn: Connection, old: str, new: str) -> None:
    conn.execute(RENAME, {"old": old, "new": new})


def delete(conn: Connection, names: Iterable[str]) -> None:
    conn.execute(DELETE, {"names": list(names)})


def record_merge(
    conn: Connection,
    *,
    reactor: str,
    strategy: str,
    strategy_version: str,
    params: JsonObject,
    recipe_key: bytes,
    model: str,
    inputs: Sequence[JsonObject],
) -> UUID | None:
    """Record the finished build `recipe_key` as the merge that made `model` (`name@version`).

    None when it is on record already.
    """
    name, _, version = model.partition("@")
    row = conn.execute(
        INSERT_MERGE,
        {
            "reactor": reactor,
            "strategy": strategy,
            "strategy_version": strategy_version,
            "params": Jsonb(params),
            "recipe_key": recipe_key,
            "model_name": name,
            "model_version": version,
        },
    ).fetchone()
    if row is None:
        return None
    operation_id = as_uuid(row[0])
    conn.execute(INSERT_INPUTS, {"operation_id": operation_id, "items": Jsonb(inputs)})
    return operation_id


def status(conn: Connection, name: str | None = None) -> list[JsonObject]:
    """The rows of `v_reactor_status`, of one reactor or of all; and what evaluations have no part
    in: `run_count`, `failed_run_count` and `mean_run_seconds`."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(STATUS, {"name": name}).fetchall()


def point_to_fit(conn: Connection, name: str, root: bytes) -> bool:
    """Make these weights what a reactor has learnt; whether both are there."""
    return bool(conn.execute(POINT_TO_FIT, {"name": name, "root": root}).fetchone())


def fitted_set(conn: Connection, name: str) -> int | None:
    """The weights that hold what a reactor has learnt, if it has."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        found = cursor.execute(FITTED_SET, {"name": name}).fetchone()
    return found if isinstance(found, int) else None


def fitted_names(conn: Connection, names: Sequence[str]) -> list[str]:
    """Which of these reactors have learnt something."""
    rows = conn.execute(FITTED_NAMES, {"names": list(names)}).fetchall()
    return [str(row[0]) for row in rows]


def lineage(conn: Connection, root: bytes) -> list[Lineage]:
    """The merges that ended in the weights `root`, the latest first."""
    with conn.cursor(row_factory=class_row(Lineage)) as cursor:
        return cursor.execute(LINEAGE, {"root": root}).fetchall()


def made_of(conn: Connection, root: bytes) -> list[JsonObject]:
    """The models that these weights went into: name, root and strategy of each merge."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(MADE_OF, {"root": root}).fetchall()
