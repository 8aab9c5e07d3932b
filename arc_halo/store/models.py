"""SQL of the registry: models, their layers, heads, weights and aliases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from arc_halo.errors import WeightsError
from arc_halo.store import aliases
from arc_halo.store.rows import Connection, LiveRow, as_uuid
from arc_halo.types import JsonObject

LIVE = """
WITH wanted AS (
    SELECT model.*
    FROM unnest(%(names)s::text[], %(versions)s::text[]) AS item (name, version)
    JOIN models AS model ON model.model_name = item.name AND model.version = item.version
), layers AS (
    SELECT layer.model_id, count(*) AS rows,
           bit_xor(hashtextextended(ROW(layer.layer_index, layer.layer_type, layer.hidden_size,
               layer.intermediate_size, layer.num_heads, layer.num_kv_heads, layer.head_dim,
               layer.activation, layer.normalization, layer.position_encoding)::text, 0)) AS digest
    FROM transformer_layers AS layer JOIN wanted ON wanted.id = layer.model_id
    GROUP BY layer.model_id
), heads AS (
    SELECT layer.model_id, count(*) AS rows,
           bit_xor(hashint8extended(layer.layer_index * 4294967296 + head.head_index,
               head.head_dim * 4294967296 + head.kv_head_index)) AS digest
    FROM attention_heads AS head
    JOIN transformer_layers AS layer ON layer.id = head.layer_id
    JOIN wanted ON wanted.id = layer.model_id
    GROUP BY layer.model_id
), parts AS (
    SELECT part.model_id, count(*) AS rows,
           bit_xor(hashtextextended(ROW(part.tensor_name, part.tensor_id, part.weight_type,
               part.layer_id)::text, 0)) AS digest
    FROM model_weights AS part JOIN wanted ON wanted.id = part.model_id
    GROUP BY part.model_id
), tables AS (
    SELECT embedding.model_id, jsonb_object_agg(embedding.embedding_type, ARRAY[
               embedding.num_embeddings, embedding.dimension, embedding.tensor_id]) AS list
    FROM embeddings AS embedding JOIN wanted ON wanted.id = embedding.model_id
    GROUP BY embedding.model_id
), aliases AS (
    SELECT alias.model_id, jsonb_agg(alias.alias ORDER BY alias.alias COLLATE "C") AS names
    FROM model_aliases AS alias JOIN wanted ON wanted.id = alias.model_id
    GROUP BY alias.model_id
)
SELECT model.model_name || '@' || model.version AS name, model.id,
       md5(ROW(model.model_type, model.architecture_config, model.architecture_family,
               model.description, model.tags, model.parameter_count, model.status,
               sets.root, model.weights_metadata, model.weights_source ->> 'source',
               model.tokenizer_digest, model.tokenizer_source, model.runner, aliases.names,
               layers.rows, layers.digest, heads.rows, heads.digest,
               parts.rows, parts.digest, tables.list)::text) AS digest
FROM wanted AS model
LEFT JOIN weight_sets AS sets ON sets.id = model.weight_set_id
LEFT JOIN layers ON layers.model_id = model.id
LEFT JOIN heads ON heads.model_id = model.id
LEFT JOIN parts ON parts.model_id = model.id
LEFT JOIN tables ON tables.model_id = model.id
LEFT JOIN aliases ON aliases.model_id = model.id
"""

LIVE_SPECS = """
SELECT model.model_name || '@' || model.version AS name,
       jsonb_build_object(
           'type', model.model_type,
           'architecture', model.architecture_config,
           'description', model.description,
           'aliases', coalesce((SELECT jsonb_agg(alias.alias ORDER BY alias.alias COLLATE "C")
                                FROM model_aliases AS alias WHERE alias.model_id = model.id),
                               '[]'::jsonb),
           'tags', model.tags,
           'runner', model.runner,
           'weights', CASE WHEN sets.root IS NOT NULL THEN jsonb_build_object(
               'root', 'sha256:' || encode(sets.root, 'hex'),
               'metadata', model.weights_metadata,
               'source', model.weights_source ->> 'source') END,
           'tokenizer', CASE WHEN model.tokenizer_digest IS NOT NULL THEN jsonb_build_object(
               'digest', 'sha256:' || encode(model.tokenizer_digest, 'hex'),
               'source', model.tokenizer_source) END) AS spec
FROM unnest(%(names)s::text[], %(versions)s::text[]) AS item (name, version)
JOIN models AS model ON model.model_name = item.name AND model.version = item.version
LEFT JOIN weight_sets AS sets ON sets.id = model.weight_set_id
"""

WEIGHT_FORMATS = """
SELECT model.model_name || '@' || model.version, model.weights_source ->> 'format'
FROM unnest(%(names)s::text[], %(versions)s::text[]) AS item (name, version)
JOIN models AS model ON model.model_name = item.name AND model.version = item.version
WHERE model.weights_source ->> 'format' IS NOT NULL
"""

# Whoever collects them has deleted them or leaves them alone until the transaction ends.
KEEP_WEIGHTS = """
SELECT FROM weight_sets WHERE root = ANY(%(roots)s) ORDER BY root FOR KEY SHARE
"""

UPSERT = """
INSERT INTO models (model_name, version, model_type, architecture_config, architecture_family,
                    description, tags, weight_set_id, weights_metadata,
                    weights_source, tokenizer_digest, tokenizer_source, runner, parameter_count,
                    status)
SELECT item.name, item.version, item.type, item.architecture, item.family, item.description,
       item.tags, sets.id, item.metadata, item.source, decode(item.tokenizer, 'hex'),
       item.tokenizer_source, item.runner, sets.parameter_count,
       CASE WHEN sets.id IS NULL THEN 'registered' ELSE 'ready' END
FROM jsonb_to_recordset(%(items)s) AS item (
    name text, version text, type text, architecture jsonb, family text, description text,
    tags jsonb, root text, metadata jsonb, source jsonb, tokenizer text, tokenizer_source text,
    runner jsonb)
LEFT JOIN weight_sets AS sets ON sets.root = decode(item.root, 'hex')
ON CONFLICT (model_name, version) DO UPDATE
SET model_type = excluded.model_type,
    architecture_config = excluded.architecture_config,
    architecture_family = excluded.architecture_family,
    description = excluded.description,
    tags = excluded.tags,
    weight_set_id = excluded.weight_set_id,
    weights_metadata = excluded.weights_metadata,
    weights_source = CASE WHEN models.weight_set_id = excluded.weight_set_id
        THEN coalesce(excluded.weights_source, models.weights_source)
        ELSE excluded.weights_source END,
    tokenizer_digest = excluded.tokenizer_digest,
    tokenizer_source = excluded.tokenizer_source,
    runner = excluded.runner,
    parameter_count = excluded.parameter_count,
    status = excluded.status
RETURNING id, model_name, version, weight_set_id
"""

DELETE_LAYERS = """
DELETE FROM transformer_layers WHERE model_id = ANY(%(ids)s)
"""

INSERT_LAYERS = """
INSERT INTO transformer_layers (model_id, layer_index, layer_type, hidden_size, intermediate_size,
                                num_heads, num_kv_heads, head_dim, activation, normalization,
                                position_encoding)
SELECT item.model_id, layer_index, item.layer_type, item.hidden_size, item.intermediate_size,
       item.num_heads, item.num_kv_heads, item.head_dim, item.activation, item.normalization,
       item.position_encoding
FROM jsonb_to_recordset(%(items)s) AS item (
    model_id uuid, layer_count int, layer_type text, hidden_size int, intermediate_size int,
    num_heads int, num_kv_heads int, head_dim int, activation text, normalization text,
    position_encoding text)
CROSS JOIN LATERAL generate_series(0, item.layer_count - 1) AS layer_index
"""

INSERT_HEADS = """
INSERT INTO attention_heads (layer_id, head_index, head_dim, kv_head_index)
SELECT layer.id, head_index, layer.head_dim,
       head_index * layer.num_kv_heads / layer.num_heads
FROM transformer_layers AS layer
CROSS JOIN LATERAL generate_series(0, layer.num_heads - 1) AS head_index
WHERE layer.model_id = ANY(%(ids)s)
"""

TENSOR_NAMES = """
SELECT model.id, model.architecture_family, array_agg(member.tensor_name)
FROM models AS model
JOIN weight_set_tensors AS member ON member.weight_set_id = model.weight_set_id
WHERE model.id = ANY(%(ids)s)
GROUP BY model.id
"""

DELETE_WEIGHTS = """
DELETE FROM model_weights AS part
USING models AS model
WHERE part.model_id = model.id AND model.id = ANY(%(ids)s)
  AND NOT EXISTS (SELECT FROM weight_set_tensors AS member
                  WHERE member.weight_set_id = model.weight_set_id
                    AND member.tensor_name = part.tensor_name)
"""

UPSERT_WEIGHTS = """
INSERT INTO model_weights (model_id, tensor_name, tensor_id, layer_id, weight_type)
SELECT model.id, member.tensor_name, member.tensor_id, layer.id, item.weight_type
FROM jsonb_to_recordset(%(items)s) AS item (
    model_id uuid, tensor_name text, weight_type text, layer_index int)
JOIN models AS model ON model.id = item.model_id
JOIN weight_set_tensors AS member
  ON member.weight_set_id = model.weight_set_id AND member.tensor_name = item.tensor_name
LEFT JOIN transformer_layers AS layer
  ON layer.model_id = model.id AND layer.layer_index = item.layer_index
ON CONFLICT (model_id, tensor_name) DO UPDATE
SET tensor_id = excluded.tensor_id, layer_id = excluded.layer_id,
    weight_type = excluded.weight_type
"""

# Materialized: the planner guesses few items, and would first join them to the history by alias
# alone, which is quadratic where every model has the alias `production`.
DELETE_EMBEDDINGS = """
DELETE FROM embeddings WHERE model_id = ANY(%(ids)s)
"""

INSERT_EMBEDDINGS = """
INSERT INTO embeddings (model_id, embedding_type, num_embeddings, dimension, tensor_id)
SELECT DISTINCT ON (part.model_id, part.weight_type)
       part.model_id, replace(part.weight_type, '_embedding', ''), tensor.shape[1],
       tensor.shape[2], tensor.id
FROM model_weights AS part JOIN tensor_metadata AS tensor ON tensor.id = part.tensor_id
WHERE part.model_id = ANY(%(ids)s)
  AND part.weight_type IN ('token_embedding', 'position_embedding', 'segment_embedding')
  AND cardinality(tensor.shape) = 2 AND 0 < ALL (tensor.shape)
ORDER BY part.model_id, part.weight_type, part.tensor_name
"""

KEEP_WEIGHT_HISTORY = """
INSERT INTO model_weight_history (model_id, weight_set_id, root, project, revision)
SELECT model.id, sets.id, sets.root, %(project)s, %(revision)s
FROM models AS model JOIN weight_sets AS sets ON sets.id = model.weight_set_id
WHERE model.id = ANY(%(ids)s)
  AND sets.root IS DISTINCT FROM (
      SELECT history.root FROM model_weight_history AS history
      WHERE history.model_id = model.id ORDER BY history.assigned_at DESC, history.id DESC LIMIT 1)
"""

RENAME = """
UPDATE models SET model_name = %(new_name)s, version = %(new_version)s
WHERE model_name = %(old_name)s AND version = %(old_version)s
"""

DELETE = """
DELETE FROM models AS model
USING unnest(%(names)s::text[], %(versions)s::text[]) AS item (name, version)
WHERE model.model_name = item.name AND model.version = item.version
"""

DEPENDANTS = """
WITH used AS (
    SELECT 'reactor/' || reactor_name AS address, base_model_id AS model_id
    FROM cognitive_fusion_reactors
    UNION
    SELECT 'reactor/' || reactor.reactor_name, member.model_id
    FROM reactor_models AS member
    JOIN cognitive_fusion_reactors AS reactor ON reactor.id = member.reactor_id
    UNION
    SELECT 'training/' || name, model_id FROM training_definitions
)
SELECT used.address, model.model_name || '@' || model.version AS model
FROM unnest(%(names)s::text[], %(versions)s::text[]) AS item (name, version)
JOIN models AS model ON model.model_name = item.name AND model.version = item.version
JOIN used ON used.model_id = model.id
ORDER BY used.address, model
"""

RUNNABLE = """
SELECT model.model_name || '@' || model.version AS name, model.runner,
       model.architecture_config AS architecture, sets.root, model.weight_set_id,
       model.tokenizer_digest
FROM unnest(%(names)s::text[], %(versions)s::text[]) AS item (name, version)
JOIN models AS model ON model.model_name = item.name AND model.version = item.version
LEFT JOIN weight_sets AS sets ON sets.id = model.weight_set_id
"""

RECORD = """
SELECT model.id, model.model_name AS name, model.version, model.model_type AS type,
       model.architecture_config AS architecture, model.architecture_family AS family,
       model.description, model.tags, model.status,
       (SELECT reactor.reactor_name FROM cognitive_fusion_reactors AS reactor
        WHERE reactor.produces_model_id = model.id ORDER BY reactor.reactor_name LIMIT 1)
           AS produced_by,
       model.parameter_count, model.weight_set_id, sets.root, sets.tensor_count,
       sets.size_bytes, model.weights_metadata AS metadata, model.tokenizer_digest,
       model.runner,
       ARRAY(SELECT alias.alias FROM model_aliases AS alias WHERE alias.model_id = model.id
             ORDER BY alias.alias) AS aliases,
       model.created_at, model.updated_at
FROM models AS model
LEFT JOIN weight_sets AS sets ON sets.id = model.weight_set_id
WHERE (%(id)s::uuid IS NULL OR model.id = %(id)s)
  AND (%(name)s::text IS NULL OR model.model_name = %(name)s)
  AND (%(version)s::text IS NULL OR model.version = %(version)s)
  AND (%(alias)s::text IS NULL OR EXISTS (
       SELECT FROM model_aliases AS alias
       WHERE alias.model_id = model.id AND alias.alias = %(alias)s))
ORDER BY model.model_name, model.created_at, model.version
"""

PARTS = """
SELECT part.tensor_name AS name, tensor.dtype, tensor.shape, tensor.size_bytes,
       part.weight_type AS part, layer.layer_index AS layer
FROM model_weights AS part
JOIN tensor_metadata AS tensor ON tensor.id = part.tensor_id
JOIN models AS model ON model.id = part.model_id
JOIN weight_set_tensors AS member
  ON member.weight_set_id = model.weight_set_id AND member.tensor_name = part.tensor_name
LEFT JOIN transformer_layers AS layer ON layer.id = part.layer_id
WHERE part.model_id = %(id)s
ORDER BY member.ordinal
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A registered model version. Sizes are in bytes, counts in elements."""

    id: UUID
    name: str
    version: str
    type: str
    architecture: JsonObject
    family: str | None
    description: str | None
    tags: JsonObject
    status: str
    produced_by: str | None
    parameter_count: int | None
    weight_set_id: int | None
    root: bytes | None
    tensor_count: int | None
    size_bytes: int | None
    metadata: dict[str, str] | None
    tokenizer_digest: bytes | None
    runner: JsonObject | None
    aliases: list[str]
    created_at: datetime
    updated_at: datetime

    @property
    def full_name(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tensor in its model: what it is, and the layer it stands in."""

    name: str
    dtype: str
    shape: list[int]
    size_bytes: int
    part: str | None
    layer: int | None


def live(conn: Connection, names: Iterable[str]) -> dict[str, LiveRow]:
    """The live rows among `names` (`name@version`), in one query."""
    with conn.cursor(row_factory=class_row(LiveRow)) as cursor:
        return {row.name: row for row in cursor.execute(LIVE, split_names(names))}


def live_specs(conn: Connection, names: Iterable[str]) -> dict[str, JsonObject]:
    rows = conn.execute(LIVE_SPECS, split_names(names)).fetchall()
    return {str(name): spec for name, spec in rows if isinstance(spec, dict)}


def weight_formats(conn: Connection, names: Iterable[str]) -> dict[str, str]:
    """The formats of the files that weights were imported from, of the models that have such."""
    rows = conn.execute(WEIGHT_FORMATS, split_names(names)).fetchall()
    return {str(name): str(format_) for name, format_ in rows}


def upsert(conn: Connection, items: Sequence[JsonObject]) -> dict[str, UUID]:
    """Insert or update models; returns the id of each `name@version`.

    Raises `WeightsError` when the weights of one are not stored.
    """
    roots = [bytes.fromhex(item["root"]) for item in items if item.get("root")]
    conn.execute(KEEP_WEIGHTS, {"roots": roots})
    rows = conn.execute(UPSERT, {"items": Jsonb(items)}).fetchall()
    without = {f"{name}@{version}" for _, name, version, weights in rows if weights is None}
    for item in items:
        if item.get("root") and (full_name := f"{item['name']}@{item['version']}") in without:
            raise WeightsError(
                f"the weights sha256:{item['root']} of {full_name} are not stored",
                hint="run the command again",
                code="AH064",
            )
    return {f"{name}@{version}": as_uuid(id_) for id_, name, version, _ in rows}


def replace_layers(conn: Connection, ids: Sequence[UUID], items: Sequence[JsonObject]) -> None:
    """Give the models `ids` the layers of `items`, and every layer its heads."""
    conn.execute(DELETE_LAYERS, {"ids": list(ids)})
    if items:
        conn.execute(INSERT_LAYERS, {"items": Jsonb(items)})
        conn.execute(INSERT_HEADS, {"ids": list(ids)})


def tensor_names(conn: Connection, ids: Sequence[UUID]) -> list[tuple[UUID, str | None, list[str]]]:
    """(model id, architecture family, tensor names) of the models that have weights."""
    rows = conn.execute(TENSOR_NAMES, {"ids": list(ids)}).fetchall()
    return [
        (as_uuid(id_), None if family is None else str(family), names)
        for id_, family, names in rows
        if isinstance(names, list)
    ]


def replace_weights(
    conn: Connection,
    ids: Sequence[UUID],
    parts: Sequence[JsonObject],
    *,
    project: str | None = None,
    revision: int | None = None,
) -> None:
    """Make `model_weights` of the models `ids` follow their weight sets, and note each new root."""
    conn.execute(DELETE_WEIGHTS, {"ids": list(ids)})
    conn.execute(DELETE_EMBEDDINGS, {"ids": list(ids)})
    if parts:
        conn.execute(UPSERT_WEIGHTS, {"items": Jsonb(parts)})
        conn.execute(INSERT_EMBEDDINGS, {"ids": list(ids)})
    conn.execute(KEEP_WEIGHT_HISTORY, {"ids": list(ids), "project": project, "revision": revision})


def rename(conn: Connection, old: str, new: str) -> None:
    (old_name, old_version), (new_name, new_version) = _pair(old), _pair(new)
    conn.execute(
        RENAME,
        {
            "old_name": old_name,
            "old_version": old_version,
            "new_name": new_name,
            "new_version": new_version,
        },
    )
    aliases.follow_renames(conn)


def delete(conn: Connection, names: Iterable[str]) -> None:
    params = split_names(names)
    aliases.release_deleted(conn, params)
    conn.execute(DELETE, params)


def dependants(conn: Connection, names: Iterable[str]) -> list[tuple[str, str]]:
    """(address, model) of every reactor and training that uses one of the models `names`."""
    rows = conn.execute(DEPENDANTS, split_names(names)).fetchall()
    return [(str(address), str(model)) for address, model in rows]


def find(
    conn: Connection,
    *,
    id: UUID | None = None,
    name: str | None = None,
    version: str | None = None,
    alias: str | None = None,
) -> list[ModelRecord]:
    """The models that fit everything given, by name and age."""
    with conn.cursor(row_factory=class_row(ModelRecord)) as cursor:
        return cursor.execute(
            RECORD, {"id": id, "name": name, "version": version, "alias": alias}
        ).fetchall()


def parts(conn: Connection, model_id: UUID) -> list[Part]:
    """The tensors of a model, in the order of their file."""
    with conn.cursor(row_factory=class_row(Part)) as cursor:
        return cursor.execute(PARTS, {"id": model_id}).fetchall()


def split_names(names: Iterable[str]) -> dict[str, list[str]]:
    pairs = [_pair(name) for name in names]
    return {"names": [name for name, _ in pairs], "versions": [version for _, version in pairs]}


def _pair(full_name: str) -> tuple[str, str]:
    name, _, version = full_name.partition("@")
    return name, version


def runnable(conn: Connection, names: Sequence[str]) -> dict[str, JsonObject]:
    """What it takes to have each model answer: runner, architecture, weights and tokenizer."""
    with conn.cursor(row_factory=dict_row, binary=True) as cursor:
        rows = cursor.execute(RUNNABLE, split_names(names)).fetchall()
    return {row.pop("name"): row for row in rows}
