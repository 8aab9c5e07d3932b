"""SQL that looks at captured attention: captures, their heads, and pieces of patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row

from arc_halo.store.rows import Connection, as_bytes

# By the name of a registered model with these weights, or the first hex digits of their root.
CAPTURES = """
SELECT capture.id, capture.session_id, capture.label, capture.weights_root, capture.input_digest,
       capture.sequence_index, capture.token_count, capture.token_ids, capture.token_texts,
       capture.size_bytes, capture.captured_at, capture.expires_at, named.model,
       (SELECT count(DISTINCT layer_index) FROM attention_patterns AS part
        WHERE part.capture_id = capture.id) AS layer_count,
       (SELECT count(*) FROM attention_patterns AS part
        WHERE part.capture_id = capture.id) AS head_count
FROM attention_captures AS capture
CROSS JOIN LATERAL (
    SELECT coalesce(string_agg(model.model_name || '@' || model.version, ', '
                               ORDER BY model.model_name, model.version), '') AS model,
           bool_or(%(model)s IN (model.model_name, model.model_name || '@' || model.version))
               AS is_meant
    FROM v_models_by_weights AS model WHERE model.weights_root = capture.weights_root
) AS named
WHERE (%(id)s::uuid IS NULL OR capture.id = %(id)s)
  AND (%(label)s::text IS NULL OR capture.label = %(label)s)
  AND (%(model)s::text IS NULL OR named.is_meant
       OR %(digits)s <> '' AND starts_with(encode(capture.weights_root, 'hex'), %(digits)s))
  AND (capture.expires_at IS NULL OR capture.expires_at > now())
ORDER BY capture.captured_at DESC, capture.sequence_index, capture.id
LIMIT %(limit)s
"""

# `digits` is the beginning of an id, without hyphens; empty where it is none.
NAMED = """
SELECT id, is_called, is_begun
FROM attention_captures,
     LATERAL (SELECT label IS NOT DISTINCT FROM %(text)s::text AS is_called,
                     %(digits)s <> '' AND starts_with(replace(id::text, '-', ''), %(digits)s)
                         AS is_begun) AS meant
WHERE (is_called OR is_begun) AND (expires_at IS NULL OR expires_at > now())
ORDER BY is_begun DESC, captured_at DESC, sequence_index, id
LIMIT 11
"""

USE = """
UPDATE attention_captures SET last_used_at = clock_timestamp() WHERE id = %(id)s
"""

HEADS = """
SELECT layer_index, head_index, query_count, key_count, is_causal, dtype, mean_entropy,
       max_entropy, mean_sink_mass, max_sink_mass, mean_peak, max_peak, size_bytes
FROM v_attention_heads WHERE capture_id = %(capture_id)s
ORDER BY layer_index, head_index
"""

QUERIES = """
SELECT query_count, key_count, is_causal, dtype, entropy, sink_mass, peak
FROM attention_patterns
WHERE capture_id = %(capture_id)s AND layer_index = %(layer)s AND head_index = %(head)s
"""

PACKED = """
SELECT packed FROM attention_patterns
WHERE capture_id = %(capture_id)s AND layer_index = %(layer)s AND head_index = %(head)s
"""

PIECE = """
SELECT substring(packed FROM %(start)s + 1 FOR %(size)s) FROM attention_patterns
WHERE capture_id = %(capture_id)s AND layer_index = %(layer)s AND head_index = %(head)s
"""

# In the order of their ids, as evictions lock them too.
DELETE = """
DELETE FROM attention_captures WHERE id IN (
    SELECT id FROM attention_captures WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRow:
    """A capture as it is stored. `model` has the names that its weights are registered by."""

    id: UUID
    session_id: UUID | None
    label: str | None
    weights_root: bytes | None
    input_digest: bytes
    sequence_index: int
    token_count: int
    token_ids: list[int] | None
    token_texts: list[str] | None
    size_bytes: int
    captured_at: datetime
    expires_at: datetime | None
    model: str
    layer_count: int
    head_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRow:
    """A capture that a text may mean: by its label, by the beginning of its id, or both."""

    id: UUID
    is_called: bool
    is_begun: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRow:
    """A head in a few numbers: means and maxima over its queries."""

    layer_index: int
    head_index: int
    query_count: int
    key_count: int
    is_causal: bool
    dtype: str
    mean_entropy: float
    max_entropy: float
    mean_sink_mass: float
    max_sink_mass: float
    mean_peak: float
    max_peak: float
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueriesRow:
    """What each query of a head does with its attention."""

    query_count: int
    key_count: int
    is_causal: bool
    dtype: str
    entropy: list[float]
    sink_mass: list[float]
    peak: list[float]


def captures(
    conn: Connection,
    *,
    id: UUID | None = None,
    label: str | None = None,
    model: str | None = None,
    digits: str = "",
    limit: int | None = None,
) -> list[CaptureRow]:
    """Captures that are not over, the newest first."""
    parameters = {"id": id, "label": label, "model": model, "digits": digits, "limit": limit}
    with conn.cursor(row_factory=class_row(CaptureRow)) as cursor:
        return cursor.execute(CAPTURES, parameters).fetchall()


def named(conn: Connection, text: str, digits: str) -> list[NamedRow]:
    """Captures with this label, or whose id begins with `digits`: those first."""
    with conn.cursor(row_factory=class_row(NamedRow)) as cursor:
        return cursor.execute(NAMED, {"text": text, "digits": digits}).fetchall()


def use(conn: Connection, id: UUID) -> None:
    """Say that a capture is wanted, from now on rather than others."""
    conn.execute(USE, {"id": id})


def heads(conn: Connection, capture_id: UUID) -> list[HeadRow]:
    """The heads of a capture, by layer, without their patterns."""
    with conn.cursor(row_factory=class_row(HeadRow)) as cursor:
        return cursor.execute(HEADS, {"capture_id": capture_id}).fetchall()


def queries(conn: Connection, capture_id: UUID, layer: int, head: int) -> QueriesRow | None:
    parameters = {"capture_id": capture_id, "layer": layer, "head": head}
    with conn.cursor(row_factory=class_row(QueriesRow)) as cursor:
        return cursor.execute(QUERIES, parameters).fetchone()


def packed(conn: Connection, capture_id: UUID, layer: int, head: int) -> bytes | None:
    """All of a head's pattern."""
    parameters = {"capture_id": capture_id, "layer": layer, "head": head}
    row = conn.execute(PACKED, parameters, binary=True).fetchone()
    return None if row is None else as_bytes(row[0])


def piece(
    conn: Connection, capture_id: UUID, layer: int, head: int, *, start: int, size: int
) -> bytes | None:
    """Some bytes of a head's pattern; the others are not read."""
    parameters = {
        "capture_id": capture_id,
        "layer": layer,
        "head": head,
        "start": start,
        "size": size,
    }
    row = conn.execute(PIECE, parameters, binary=True).fetchone()
    return None if row is None else as_bytes(row[0])


def delete(conn: Connection, ids: Sequence[UUID]) -> int:
    """Delete captures with their heads; how many."""
    return conn.execute(DELETE, {"ids": list(ids)}).rowcount
