"""SQL of what tensors take: by model, by codec, and what sharing saves."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row

from arc_halo.store.rows import Connection

MODELS = """
WITH used AS MATERIALIZED (
    SELECT DISTINCT model.id AS model_id, data.chunk_digest
    FROM models AS model
    JOIN weight_set_tensors AS member ON member.weight_set_id = model.weight_set_id
    JOIN tensor_data AS data ON data.tensor_id = member.tensor_id
), shares AS (
    SELECT chunk_digest, count(*) AS models FROM used GROUP BY chunk_digest
), sizes AS (
    SELECT used.model_id, sum(chunk.raw_bytes) AS unique_bytes,
           sum(chunk.stored_bytes) AS stored_bytes,
           sum(chunk.stored_bytes) FILTER (WHERE shares.models = 1) AS own_bytes
    FROM used
    JOIN shares USING (chunk_digest)
    JOIN chunk_bodies AS chunk ON chunk.digest = used.chunk_digest
    GROUP BY used.model_id
)
SELECT model.model_name || '@' || model.version AS model, sets.tensor_count,
       sets.size_bytes AS logical_bytes,
       coalesce(sizes.unique_bytes, 0)::bigint AS unique_bytes,
       coalesce(sizes.stored_bytes, 0)::bigint AS stored_bytes,
       coalesce(sizes.own_bytes, 0)::bigint AS own_bytes
FROM models AS model
JOIN weight_sets AS sets ON sets.id = model.weight_set_id
LEFT JOIN sizes ON sizes.model_id = model.id
ORDER BY model
"""

CODECS = """
SELECT codec, count(*) AS chunks, sum(raw_bytes)::bigint AS raw_bytes,
       sum(stored_bytes)::bigint AS stored_bytes,
       coalesce(sum(stored_bytes) FILTER (WHERE store_id IS NOT NULL), 0)::bigint
           AS elsewhere_bytes
FROM chunk_bodies GROUP BY codec ORDER BY codec
"""

OF_MODELS = """
SELECT coalesce(sum(chunk.raw_bytes), 0)::bigint, coalesce(sum(chunk.stored_bytes), 0)::bigint
FROM chunk_bodies AS chunk
WHERE EXISTS (
    SELECT FROM tensor_data AS data
    JOIN weight_set_tensors AS member ON member.tensor_id = data.tensor_id
    JOIN models AS model ON model.weight_set_id = member.weight_set_id
    WHERE data.chunk_digest = chunk.digest)
"""

TENSORS = """
SELECT member.tensor_name AS name, tensor.digest, tensor.dtype, tensor.shape, tensor.size_bytes,
       tensor.chunk_count, coalesce(sum(chunk.stored_bytes), 0)::bigint AS stored_bytes,
       coalesce(array_agg(DISTINCT chunk.codec) FILTER (WHERE chunk.codec IS NOT NULL),
                '{}') AS codecs,
       count(chunk.digest)::int AS chunks_there
FROM weight_set_tensors AS member
JOIN tensor_metadata AS tensor ON tensor.id = member.tensor_id
LEFT JOIN tensor_data AS data ON data.tensor_id = tensor.id
LEFT JOIN chunk_bodies AS chunk ON chunk.digest = data.chunk_digest
WHERE member.weight_set_id = %(weight_set_id)s
  AND (%(name)s::text IS NULL OR member.tensor_name = %(name)s)
GROUP BY member.ordinal, member.tensor_name, tensor.id
ORDER BY member.ordinal
"""

SHARED_BY = """
SELECT model.model_name || '@' || model.version AS model, other.tensor_name
FROM weight_set_tensors AS member
JOIN weight_set_tensors AS other ON other.tensor_id = member.tensor_id
JOIN models AS model ON model.weight_set_id = other.weight_set_id
WHERE member.weight_set_id = %(weight_set_id)s AND member.tensor_name = %(name)s
  AND (model.id, other.tensor_name) <> (%(model_id)s, %(name)s)
ORDER BY model, other.tensor_name
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUsage:
    """What a model's weights take, in bytes.

    Logical is before anything; unique counts each different chunk of the model once, raw; stored
    counts their bodies; own are those that no other model uses.
    """

    model: str
    tensor_count: int
    logical_bytes: int
    unique_bytes: int
    stored_bytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecUsage:
    """What the chunks of one codec take; `elsewhere_bytes` of `stored_bytes` in a body store."""

    codec: str
    chunks: int
    raw_bytes: int
    stored_bytes: int
    elsewhere_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorUsage:
    """A tensor of a set as it is stored."""

    name: str
    digest: bytes
    dtype: str
    shape: list[int]
    size_bytes: int
    chunk_count: int
    stored_bytes: int
    codecs: list[str]
    chunks_there: int


def models(conn: Connection) -> list[ModelUsage]:
    """Every model that has weights."""
    with conn.cursor(row_factory=class_row(ModelUsage)) as cursor:
        return cursor.execute(MODELS).fetchall()


def codecs(conn: Connection) -> list[CodecUsage]:
    """Every chunk of the database, by codec."""
    with conn.cursor(row_factory=class_row(CodecUsage)) as cursor:
        return cursor.execute(CODECS).fetchall()


def of_models(conn: Connection) -> tuple[int, int]:
    """Raw and stored bytes of the chunks that any model uses, each counted once."""
    row = conn.execute(OF_MODELS).fetchone()
    assert row is not None
    return int(str(row[0])), int(str(row[1]))


def tensors(conn: Connection, weight_set_id: int, name: str | None = None) -> list[TensorUsage]:
    """The tensors of a set in the order of their file, or the one of that name."""
    with conn.cursor(row_factory=class_row(TensorUsage)) as cursor:
        parameters = {"weight_set_id": weight_set_id, "name": name}
        return cursor.execute(TENSORS, parameters).fetchall()


def shared_by(
    conn: Connection, model_id: UUID, weight_set_id: int, name: str
) -> list[tuple[str, str]]:
    """(model, tensor name) of every other place where the model's tensor stands."""
    parameters = {"model_id": model_id, "weight_set_id": weight_set_id, "name": name}
    rows = conn.execute(SHARED_BY, parameters).fetchall()
    return [(str(model), str(tensor)) for model, tensor in rows]
