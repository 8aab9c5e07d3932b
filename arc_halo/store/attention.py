"""SQL of captured attention: sequences, and one row for each head of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from arc_halo.store.rows import Connection, as_uuid

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


def evict(conn: Connection, budget_bytes: int) -> int:
    """Delete what is over, and what was used longest ago until the rest fits; how many."""
    expired = conn.execute(EXPIRE).rowcount
    return expired + conn.execute(EVICT, {"budget_bytes": budget_bytes}).rowcount


def usage(conn: Connection) -> tuple[int, int]:
    """How many captures there are, and what their patterns take."""
    row = conn.execute(USAGE).fetchone()
    assert row is not None
    return int(str(row[0])), int(str(row[1]))
