"""SQL of the activation cache: what a module gave for an input, by the digest of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from psycopg.rows import class_row, scalar_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject

# Held until the transaction ends: two that write at once would both find room in the budget.
LOCK = """
SELECT pg_advisory_xact_lock(hashtextextended('arc-halo/activations', 0))
"""

FIND = """
SELECT entry.id AS entry_id, entry.weights_root, entry.layer_name, entry.structure_digest,
       entry.selection, tensor.id, tensor.digest, tensor.dtype, tensor.shape,
       tensor.size_bytes, tensor.chunk_bytes, tensor.chunk_count
FROM activation_cache AS entry
JOIN tensor_metadata AS tensor ON tensor.id = entry.tensor_id
WHERE entry.weights_root = ANY(%(roots)s) AND entry.input_digest = %(input_digest)s
  AND (%(structure_digest)s::bytea IS NULL OR entry.structure_digest = %(structure_digest)s)
  AND (entry.expires_at IS NULL OR entry.expires_at > now())
ORDER BY entry.id
"""

# In the order of their ids, as evictions lock them too: so nobody waits for one who waits for him.
COUNT_HITS = """
WITH used AS (
    SELECT id FROM activation_cache WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE
)
UPDATE activation_cache AS entry
SET hit_count = entry.hit_count + 1, last_used_at = clock_timestamp()
FROM used WHERE entry.id = used.id
"""

# One that is there takes the new tensor only where its time was over.
INSERT = """
INSERT INTO activation_cache AS entry (weights_root, structure_digest, input_digest, layer_name,
    selection, tensor_id, size_bytes, last_used_at, expires_at)
SELECT %(weights_root)s, %(structure_digest)s, %(input_digest)s, %(layer_name)s,
    %(selection)s::jsonb, tensor.id, tensor.size_bytes, clock_timestamp(),
    now() + %(ttl)s::interval
FROM tensor_metadata AS tensor WHERE tensor.digest = %(digest)s
FOR KEY SHARE OF tensor
ON CONFLICT (weights_root, input_digest, layer_name, structure_digest,
             hashtextextended(selection::text, 0)) DO UPDATE
SET tensor_id = excluded.tensor_id, size_bytes = excluded.size_bytes,
    expires_at = excluded.expires_at, last_used_at = excluded.last_used_at, hit_count = 0,
    created_at = now()
WHERE entry.expires_at <= now()
RETURNING entry.id
"""

EXPIRE = """
DELETE FROM activation_cache WHERE id IN (
    SELECT id FROM activation_cache WHERE expires_at <= now() ORDER BY id FOR UPDATE)
"""

# From what was used last on: what goes beyond the budget, and all that is older.
EVICT = """
DELETE FROM activation_cache WHERE id IN (
    SELECT entry.id
    FROM activation_cache AS entry
    JOIN (SELECT id, sum(size_bytes) OVER (ORDER BY last_used_at DESC, id DESC) AS upto
          FROM activation_cache) AS ranked USING (id)
    WHERE ranked.upto > %(budget_bytes)s
    ORDER BY entry.id FOR UPDATE OF entry)
"""

USAGE = """
SELECT count(*) AS entries, coalesce(sum(size_bytes), 0)::bigint AS size_bytes,
       coalesce(sum(hit_count), 0)::bigint AS hits,
       count(*) FILTER (WHERE expires_at <= now()) AS expired
FROM activation_cache
WHERE %(weights_root)s::bytea IS NULL OR weights_root = %(weights_root)s
"""

IS_THERE = """
SELECT EXISTS (SELECT FROM activation_cache WHERE id = %(id)s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What activations are found by, but for the module's name and the part that was kept."""

    weights_root: bytes
    input_digest: bytes
    structure_digest: bytes

    @property
    def capture_id(self) -> UUID:
        """As the table computes it."""
        parts = self.weights_root + self.structure_digest + self.input_digest
        return UUID(bytes=hashlib.sha256(parts).digest()[:16])


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry with its tensor. `entry_id` is the entry's, `id` the tensor's."""

    entry_id: int
    weights_root: bytes
    layer_name: str
    structure_digest: bytes
    selection: JsonObject
    id: int
    digest: bytes
    dtype: str
    shape: list[int]
    size_bytes: int
    chunk_bytes: int
    chunk_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEntry:
    """What is to be entered: a module's name, the part that was kept, and the tensor's digest."""

    key: Key
    layer_name: str
    selection: JsonObject
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How much there is, how often it was found, and how much of it is over."""

    entries: int
    size_bytes: int
    hits: int
    expired: int


def lock(conn: Connection) -> None:
    """Wait for others who write here, and keep them out until the transaction ends."""
    conn.execute(LOCK)


def find(
    conn: Connection,
    roots: Sequence[bytes],
    input_digest: bytes,
    structure_digest: bytes | None = None,
) -> list[Entry]:
    """The entries of an input that are not over: of models with any of these weights, and of one
    structure or of all."""
    parameters = {
        "roots": list(roots),
        "input_digest": input_digest,
        "structure_digest": structure_digest,
    }
    with conn.cursor(row_factory=class_row(Entry)) as cursor:
        return cursor.execute(FIND, parameters).fetchall()


def count_hits(conn: Connection, ids: Sequence[int]) -> None:
    """Say that these were found, and are wanted."""
    conn.execute(COUNT_HITS, {"ids": list(ids)})


def insert(conn: Connection, entries: Sequence[NewEntry], ttl: timedelta | None) -> int:
    """Enter what is not there; how many that were. Their tensors must be stored."""
    count = 0
    for entry in entries:
        parameters = {
            "weights_root": entry.key.weights_root,
            "structure_digest": entry.key.structure_digest,
            "input_digest": entry.key.input_digest,
            "layer_name": entry.layer_name,
            "selection": Jsonb(entry.selection),
            "digest": entry.digest,
            "ttl": ttl,
        }
        count += conn.execute(INSERT, parameters).rowcount
    return count


def evict(conn: Connection, budget_bytes: int) -> int:
    """Delete what is over, and what was used longest ago until the rest fits; how many.

    Their tensors are left to collection.
    """
    expired = conn.execute(EXPIRE).rowcount
    return expired + conn.execute(EVICT, {"budget_bytes": budget_bytes}).rowcount


def usage(conn: Connection, weights_root: bytes | None = None) -> Usage:
    """What there is, of all weights or of some."""
    with conn.cursor(row_factory=class_row(Usage)) as cursor:
        found = cursor.execute(USAGE, {"weights_root": weights_root}).fetchone()
    assert found is not None
    return found


def is_there(conn: Connection, entry_id: int) -> bool:
    with conn.cursor(row_factory=scalar_row) as cursor:
        return bool(cursor.execute(IS_THERE, {"id": entry_id}).fetchone())
