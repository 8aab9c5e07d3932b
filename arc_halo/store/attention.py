"""SQL of captured attention: sequences, and one row for each head of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from psycopg.rows import class_row, scalar_row

from arc_halo.store.rows import Connection, as_bytes, as_uuid

# Held until the transaction ends: two that write at once would both find room in the budget.
LOCK = """
SELECT pg_advisory_xact_lock(hashtextextended('arc-halo/attention', 0))
"""

INSERT_CAPTURE = """
INSERT INTO attention_captures (session_id, label, weights_root, input_digest, sequence_index,
    token_count, token_ids, token_texts, size_bytes, expires_at)
VALUES (%(session_id)s, %(label)s, %(weights_root)s, %(input_digest)s, %(sequence_index)s,
    %(token_count)s, %(token_ids)s, %(token_texts)s, %(size_bytes)s, now() + %(ttl)s::interval)
RETURNING id
"""

INSERT_PATTERN = """
INSERT INTO attention_patterns (capture_id, layer_index, head_index, query_count, key_count,
    is_causal, dtype, entropy, sink_mass, peak, packed)
VALUES (%(capture_id)s, %(layer_index)s, %(head_index)s, %(query_count)s, %(key_count)s,
    %(is_causal)s, %(dtype)s, %(entropy)s::real[], %(sink_mass)s::real[], %(peak)s::real[],
    %(packed)b)
"""

EXPIRE = """
DELETE FROM attention_captures WHERE id IN (
    SELECT id FROM attention_captures WHERE expires_at <= now() ORDER BY id FOR UPDATE)
"""

# From what was used last on: what goes beyond the budget, and all that is older.
EVICT = """
DELETE FROM attention_captures WHERE id IN (
    SELECT capture.id
    FROM attention_captures AS capture
    JOIN (SELECT id, sum(size_bytes) OVER (ORDER BY last_used_at DESC, id DESC) AS upto
          FROM attention_captures) AS ranked USING (id)
    WHERE ranked.upto > %(budget_bytes)s
    ORDER BY capture.id FOR UPDATE OF capture)
"""

CAPTURES = """
SELECT capture.id, capture.session_id, capture.label, capture.weights_root, capture.input_digest,
       capture.sequence_index, capture.token_count, capture.token_ids, capture.token_texts,
       capture.size_bytes, capture.captured_at, capture.expires_at,
       (SELECT count(DISTINCT layer_index) FROM attention_patterns AS part
        WHERE part.capture_id = capture.id) AS layer_count,
       (SELECT count(*) FROM attention_patterns AS part
        WHERE part.capture_id = capture.id) AS head_count
FROM attention_captures AS capture
WHERE (%(label)s::text IS NULL OR capture.label = %(label)s)
  AND (%(weights_root)s::bytea IS NULL OR capture.weights_root = %(weights_root)s)
  AND (%(session_id)s::uuid IS NULL OR capture.session_id = %(session_id)s)
  AND (capture.expires_at IS NULL OR capture.expires_at > now())
ORDER BY capture.captured_at DESC, capture.sequence_index, capture.id
LIMIT %(limit)s
"""

# `digits` is the beginning of an id, without hyphens; empty where it is none.
NAMED = """
SELECT id FROM attention_captures
WHERE (id::text = %(text)s OR label = %(text)s
   OR %(digits)s <> '' AND starts_with(replace(id::text, '-', ''), %(digits)s))
  AND (expires_at IS NULL OR expires_at > now())
ORDER BY (id::text = %(text)s) DESC, (label IS NOT DISTINCT FROM %(text)s) DESC,
    captured_at DESC, sequence_index, id
LIMIT 11
"""

USE = """
UPDATE attention_captures SET last_used_at = clock_timestamp() WHERE id = %(id)s
RETURNING id, session_id, label, weights_root, input_digest, sequence_index, token_count,
    token_ids, token_texts, size_bytes, captured_at, expires_at,
    (SELECT count(DISTINCT layer_index) FROM attention_patterns AS part
     WHERE part.capture_id = attention_captures.id) AS layer_count,
    (SELECT count(*) FROM attention_patterns AS part
     WHERE part.capture_id = attention_captures.id) AS head_count
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

DELETE = """
DELETE FROM attention_captures WHERE id = ANY(%(ids)s)
"""


USAGE = """
SELECT count(*), coalesce(sum(size_bytes), 0)::bigint FROM attention_captures
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCapture:
    """A sequence whose attention was captured; `sequence_index` is its place in the batch."""

    input_digest: bytes
    sequence_index: int
    token_count: int
    token_ids: list[int] | None
    token_texts: list[str] | None
    size_bytes: int
    weights_root: bytes | None = None
    session_id: UUID | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPattern:
    """One head of a capture."""

    layer_index: int
    head_index: int
    query_count: int
    key_count: int
    is_causal: bool
    dtype: str
    entropy: list[float]
    sink_mass: list[float]
    peak: list[float]
    packed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRow:
    """A capture as it is stored."""

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
    layer_count: int
    head_count: int


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


def lock(conn: Connection) -> None:
    """Wait for others who write here, and keep them out until the transaction ends."""
    conn.execute(LOCK)


def insert(
    conn: Connection, capture: NewCapture, patterns: Iterable[NewPattern], ttl: timedelta | None
) -> UUID:
    """Enter a capture with its heads."""
    parameters = {name: getattr(capture, name) for name in NewCapture.__dataclass_fields__}
    row = conn.execute(INSERT_CAPTURE, {**parameters, "ttl": ttl}).fetchone()
    assert row is not None
    capture_id = as_uuid(row[0])
    with conn.cursor() as cursor:
        cursor.executemany(
            INSERT_PATTERN,
            (
                {name: getattr(each, name) for name in NewPattern.__dataclass_fields__}
                | {"capture_id": capture_id}
                for each in patterns
            ),
        )
    return capture_id


def evict(conn: Connection, budget_bytes: int | None) -> int:
    """Delete what is over, and what was used longest ago until the rest fits; how many."""
    count = conn.execute(EXPIRE).rowcount
    if budget_bytes is not None:
        count += conn.execute(EVICT, {"budget_bytes": budget_bytes}).rowcount
    return count


def usage(conn: Connection) -> tuple[int, int]:
    """How many captures there are, and what their patterns take."""
    row = conn.execute(USAGE).fetchone()
    assert row is not None
    return int(str(row[0])), int(str(row[1]))


def captures(
    conn: Connection,
    *,
    label: str | None = None,
    weights_root: bytes | None = None,
    session_id: UUID | None = None,
    limit: int | None = None,
) -> list[CaptureRow]:
    """Captures that are not over, the newest first."""
    parameters = {
        "label": label,
        "weights_root": weights_root,
        "session_id": session_id,
        "limit": limit,
    }
    with conn.cursor(row_factory=class_row(CaptureRow)) as cursor:
        return cursor.execute(CAPTURES, parameters).fetchall()


def named(conn: Connection, text: str, digits: str) -> list[UUID]:
    """Captures with this id or label, or whose id begins with `digits`; the best first."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        found = cursor.execute(NAMED, {"text": text, "digits": digits}).fetchall()
    return [as_uuid(each) for each in found]


def use(conn: Connection, id: UUID) -> CaptureRow | None:
    """A capture, which is wanted from now on rather than others."""
    with conn.cursor(row_factory=class_row(CaptureRow)) as cursor:
        return cursor.execute(USE, {"id": id}).fetchone()


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
