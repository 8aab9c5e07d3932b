"""SQL that looks at the activation cache: what was captured, by the inputs that it is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row, scalar_row

from arc_halo.store.rows import Connection, as_uuid
from arc_halo.types import JsonObject

# By the name of a registered model with these weights, or the first hex digits of their root.
CAPTURES = """
SELECT entry.capture_id AS id, entry.weights_root, entry.structure_digest, entry.input_digest,
       named.model, count(DISTINCT entry.layer_name) AS layer_count,
       sum(entry.size_bytes)::bigint AS size_bytes, sum(entry.hit_count)::bigint AS hit_count,
       min(entry.created_at) AS captured_at, max(entry.last_used_at) AS last_used_at,
       min(entry.expires_at) AS expires_at
FROM activation_cache AS entry
CROSS JOIN LATERAL (
    SELECT coalesce(string_agg(model.model_name || '@' || model.version, ', '
                               ORDER BY model.model_name, model.version), '') AS model,
           bool_or(%(model)s IN (model.model_name, model.model_name || '@' || model.version))
               AS is_meant
    FROM v_models_by_weights AS model WHERE model.weights_root = entry.weights_root
) AS named
WHERE (%(id)s::uuid IS NULL OR entry.capture_id = %(id)s)
  AND (%(model)s::text IS NULL OR named.is_meant
       OR %(digits)s <> '' AND starts_with(encode(entry.weights_root, 'hex'), %(digits)s))
  AND (entry.expires_at IS NULL OR entry.expires_at > now())
GROUP BY entry.capture_id, entry.weights_root, entry.structure_digest, entry.input_digest,
         named.model
ORDER BY captured_at DESC, id
LIMIT %(limit)s
"""

NAMED = """
SELECT DISTINCT capture_id FROM activation_cache
WHERE starts_with(replace(capture_id::text, '-', ''), %(digits)s)
  AND (expires_at IS NULL OR expires_at > now())
ORDER BY capture_id
LIMIT 11
"""

LAYERS = """
SELECT entry.id AS entry_id, entry.layer_name, entry.selection, entry.hit_count, tensor.id,
       tensor.digest, tensor.dtype, tensor.shape, tensor.size_bytes, tensor.chunk_bytes,
       tensor.chunk_count
FROM activation_cache AS entry
JOIN tensor_metadata AS tensor ON tensor.id = entry.tensor_id
WHERE entry.capture_id = %(id)s AND (entry.expires_at IS NULL OR entry.expires_at > now())
ORDER BY entry.id
"""

# In the order of their ids, as evictions lock them too.
DELETE = """
DELETE FROM activation_cache WHERE id IN (
    SELECT id FROM activation_cache WHERE capture_id = ANY(%(ids)s) ORDER BY id FOR UPDATE)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRow:
    """What one model gave for one input. `model` has the names that its weights are registered by,
    `expires_at` is when the first of it is over."""

    id: UUID
    weights_root: bytes
    structure_digest: bytes
    input_digest: bytes
    model: str
    layer_count: int
    size_bytes: int
    hit_count: int
    captured_at: datetime
    last_used_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """An entry of a capture with its tensor. `entry_id` is the entry's, `id` the tensor's."""

    entry_id: int
    layer_name: str
    selection: JsonObject
    hit_count: int
    id: int
    digest: bytes
    dtype: str
    shape: list[int]
    size_bytes: int
    chunk_bytes: int
    chunk_count: int


def captures(
    conn: Connection,
    *,
    id: UUID | None = None,
    model: str | None = None,
    digits: str = "",
    limit: int | None = None,
) -> list[CaptureRow]:
    """Captures that are not over, the newest first."""
    parameters = {"id": id, "model": model, "digits": digits, "limit": limit}
    with conn.cursor(row_factory=class_row(CaptureRow)) as cursor:
        return cursor.execute(CAPTURES, parameters).fetchall()


def named(conn: Connection, digits: str) -> list[UUID]:
    """Captures whose id begins so."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        found = cursor.execute(NAMED, {"digits": digits}).fetchall()
    return [as_uuid(each) for each in found]


def layers(conn: Connection, id: UUID) -> list[LayerRow]:
    """What a capture consists of, in the order it was entered."""
    with conn.cursor(row_factory=class_row(LayerRow)) as cursor:
        return cursor.execute(LAYERS, {"id": id}).fetchall()


def delete(conn: Connection, ids: Sequence[UUID]) -> int:
    """Delete captures; how many layers that is. Their tensors are left to collection."""
    return conn.execute(DELETE, {"ids": list(ids)}).rowcount
