"""SQL of collection: what nobody refers to is found page by page, locked, looked at again, deleted.

A row goes only if it was last wanted before the *cutoff*: the start of the grace period, or that
of the oldest live build if that is earlier. What a build finds there it touches after its own row
can be seen, so either the second look finds the touch, or the build finds the row gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from psycopg.rows import class_row, scalar_row

from arc_halo.store.rows import Connection, as_bytes, as_uuid

FIRST_UUID = UUID(int=0)

# A build that is silent for less than this is alive, whatever the grace period.
STALE_BUILDS = """
SELECT id FROM weight_builds
WHERE id > %(after)s
  AND (status = 'building'
       AND heartbeat_at < now() - greatest(%(grace)s::interval, interval '1 hour')
    OR status = 'failed' AND heartbeat_at < now() - %(grace)s::interval)
ORDER BY id LIMIT %(batch)s
"""

# The lock is taken before the condition is looked at anew: a build that somebody went on with
# in between stays. It goes with the set that it fills.
DROP_BUILDS = """
DELETE FROM weight_sets
WHERE root IS NULL AND id IN (
    SELECT weight_set_id FROM weight_builds
    WHERE id = ANY(%(ids)s)
      AND (status = 'building'
           AND heartbeat_at < now() - greatest(%(grace)s::interval, interval '1 hour')
        OR status = 'failed' AND heartbeat_at < now() - %(grace)s::interval)
    FOR UPDATE SKIP LOCKED)
"""

CUTOFF = """
SELECT least(now() - %(grace)s::interval, min(started_at))
FROM weight_builds
WHERE status = 'building'
  AND heartbeat_at >= now() - greatest(%(grace)s::interval, interval '1 hour')
"""

MODEL_PAGE = """
SELECT id FROM models WHERE id > %(after)s ORDER BY id LIMIT %(batch)s
"""

RELEASE_HISTORY = """
WITH ranked AS (
    SELECT model_id, weight_set_id,
           row_number() OVER (PARTITION BY model_id
                              ORDER BY max(assigned_at) DESC, max(id) DESC) AS place
    FROM model_weight_history
    WHERE model_id = ANY(%(models)s) AND weight_set_id IS NOT NULL
    GROUP BY model_id, weight_set_id
)
UPDATE model_weight_history SET weight_set_id = NULL
WHERE id IN (
    SELECT entry.id
    FROM ranked
    JOIN model_weight_history AS entry USING (model_id, weight_set_id)
    WHERE ranked.place > %(retain)s
      AND NOT EXISTS (SELECT FROM models AS model
                      WHERE model.weight_set_id = entry.weight_set_id OFFSET 0)
    ORDER BY entry.id LIMIT %(batch)s
    FOR UPDATE OF entry SKIP LOCKED)
"""

SET_PAGE = """
SELECT max(id) FROM (
    SELECT id FROM weight_sets WHERE id > %(after)s ORDER BY id LIMIT %(batch)s) AS page
"""

# OFFSET 0, here and below: the planner must look each row of a page up by its index, and not
# join the page to a whole table.
FREE_SETS = """
SELECT sets.id, coalesce(sets.tensor_count, 0) AS rows
FROM weight_sets AS sets
WHERE sets.id > %(after)s AND sets.id <= %(last)s
  AND (%(ids)s::bigint[] IS NULL OR sets.id = ANY(%(ids)s))
  AND (sets.completed_at < %(cutoff)s
    OR sets.root IS NULL
       AND NOT EXISTS (SELECT FROM weight_builds AS r WHERE r.weight_set_id = sets.id OFFSET 0))
  AND NOT EXISTS (SELECT FROM models AS r WHERE r.weight_set_id = sets.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM model_weight_history AS r WHERE r.weight_set_id = sets.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM model_checkpoints AS r WHERE r.weight_set_id = sets.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM model_checkpoints AS r WHERE r.state_set_id = sets.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM cognitive_fusion_reactors AS r
                  WHERE r.fitted_set_id = sets.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM fusion_operations AS r
                  WHERE r.output_set_id = sets.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM weight_builds AS r WHERE r.weight_set_id = sets.id
                  AND r.heartbeat_at >= %(cutoff)s OFFSET 0)
ORDER BY sets.id
"""

LOCK_SETS = """
SELECT id FROM weight_sets WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE SKIP LOCKED
"""

# A build that was asked for meanwhile is passed over, and then its set stays.
DELETE_BUILDS_OF_SETS = """
DELETE FROM weight_builds WHERE weight_set_id = ANY(%(ids)s) AND heartbeat_at < %(cutoff)s
"""

DELETE_SETS = """
DELETE FROM weight_sets AS sets
WHERE id = ANY(%(ids)s)
  AND NOT EXISTS (SELECT FROM weight_builds AS r WHERE r.weight_set_id = sets.id OFFSET 0)
"""

TENSOR_PAGE = """
SELECT max(id) FROM (
    SELECT id FROM tensor_metadata WHERE id > %(after)s ORDER BY id LIMIT %(batch)s) AS page
"""

FREE_TENSORS = """
SELECT tensor.id, tensor.chunk_count AS rows
FROM tensor_metadata AS tensor
WHERE tensor.id > %(after)s AND tensor.id <= %(last)s
  AND (%(ids)s::bigint[] IS NULL OR tensor.id = ANY(%(ids)s))
  AND tensor.created_at < %(cutoff)s
  AND NOT EXISTS (SELECT FROM weight_set_tensors AS r WHERE r.tensor_id = tensor.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM model_weights AS r WHERE r.tensor_id = tensor.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM model_weights AS r WHERE r.gradient_tensor_id = tensor.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM embeddings AS r WHERE r.tensor_id = tensor.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM optimizer_state AS r WHERE r.tensor_id = tensor.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM activation_cache AS r WHERE r.tensor_id = tensor.id OFFSET 0)
ORDER BY tensor.id
"""

LOCK_TENSORS = """
SELECT id FROM tensor_metadata WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE SKIP LOCKED
"""

DELETE_TENSORS = """
DELETE FROM tensor_metadata WHERE id = ANY(%(ids)s)
"""

CHUNK_PAGE = """
SELECT digest FROM (
    SELECT digest FROM chunk_bodies WHERE digest > %(after)s ORDER BY digest LIMIT %(batch)s
) AS page ORDER BY digest DESC LIMIT 1
"""

HAS_DELTAS = """
SELECT EXISTS (SELECT FROM chunk_bodies WHERE base_digest IS NOT NULL)
"""

FREE_CHUNKS = """
SELECT chunk.digest
FROM chunk_bodies AS chunk
WHERE chunk.digest > %(after)s AND chunk.digest <= %(last)s
  AND (%(digests)s::bytea[] IS NULL OR chunk.digest = ANY(%(digests)s))
  AND (chunk.base_digest IS NOT NULL) = %(deltas)s
  AND chunk.seen_at < %(cutoff)s
  AND NOT EXISTS (SELECT FROM tensor_data AS r WHERE r.chunk_digest = chunk.digest OFFSET 0)
  AND NOT EXISTS (SELECT FROM chunk_bodies AS r WHERE r.base_digest = chunk.digest OFFSET 0)
ORDER BY chunk.digest
"""

LOCK_CHUNKS = """
SELECT digest FROM chunk_bodies WHERE digest = ANY(%(digests)s)
ORDER BY digest FOR UPDATE SKIP LOCKED
"""

DELETE_CHUNKS = """
DELETE FROM chunk_bodies WHERE digest = ANY(%(digests)s) RETURNING stored_bytes
"""

LOCK_BODIES = """
SELECT pg_advisory_xact_lock(hashtextextended('arc-halo/bodies', 0))
"""

ORPHANS = """
SELECT body.digest FROM unnest(%(digests)s::bytea[]) AS body (digest)
WHERE NOT EXISTS (SELECT FROM chunk_bodies AS chunk
                  WHERE chunk.digest = body.digest AND chunk.store_id = %(store_id)s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """A row that may go, and how many rows go with it."""

    id: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A page of a table by its key: after `after`, up to and with `last`."""

    after: int | bytes
    last: int | bytes


def stale_builds(conn: Connection, *, after: UUID, grace: timedelta, batch: int) -> list[UUID]:
    """The next builds that failed, or that nobody works at any more."""
    rows = conn.execute(STALE_BUILDS, {"after": after, "grace": grace, "batch": batch}).fetchall()
    return [as_uuid(row[0]) for row in rows]


def drop_builds(conn: Connection, ids: Sequence[UUID], *, grace: timedelta) -> int:
    return conn.execute(DROP_BUILDS, {"ids": list(ids), "grace": grace}).rowcount


def cutoff(conn: Connection, grace: timedelta) -> datetime:
    """What was wanted at this time, or later, stays. Good for a whole collection.

    Ask for it after stale builds are dropped: those that are left hold it back.
    """
    with conn.cursor(row_factory=scalar_row) as cursor:
        found = cursor.execute(CUTOFF, {"grace": grace}).fetchone()
    assert isinstance(found, datetime)
    return found


def model_page(conn: Connection, *, after: UUID, batch: int) -> list[UUID]:
    rows = conn.execute(MODEL_PAGE, {"after": after, "batch": batch}).fetchall()
    return [as_uuid(row[0]) for row in rows]


def release_history(conn: Connection, models: Sequence[UUID], *, retain: int, batch: int) -> int:
    """Let go of sets that models had before the last `retain` distinct ones; entries changed."""
    parameters = {"models": list(models), "retain": retain, "batch": batch}
    return conn.execute(RELEASE_HISTORY, parameters).rowcount


def set_page(conn: Connection, *, after: int, batch: int) -> Span | None:
    return _span(conn, SET_PAGE, after, batch)


def free_sets(
    conn: Connection, span: Span, cutoff: datetime, ids: Sequence[int] | None = None
) -> list[Free]:
    return _free(conn, FREE_SETS, span, cutoff, ids)


def lock_sets(conn: Connection, ids: Sequence[int]) -> list[int]:
    return [int(str(row[0])) for row in conn.execute(LOCK_SETS, {"ids": list(ids)})]


def delete_sets(conn: Connection, ids: Sequence[int], cutoff: datetime) -> tuple[int, int]:
    """Delete locked sets with the builds that remember them; how many builds, how many sets."""
    parameters = {"ids": list(ids), "cutoff": cutoff}
    builds = conn.execute(DELETE_BUILDS_OF_SETS, parameters).rowcount
    return builds, conn.execute(DELETE_SETS, {"ids": list(ids)}).rowcount


def tensor_page(conn: Connection, *, after: int, batch: int) -> Span | None:
    return _span(conn, TENSOR_PAGE, after, batch)


def free_tensors(
    conn: Connection, span: Span, cutoff: datetime, ids: Sequence[int] | None = None
) -> list[Free]:
    return _free(conn, FREE_TENSORS, span, cutoff, ids)


def lock_tensors(conn: Connection, ids: Sequence[int]) -> list[int]:
    return [int(str(row[0])) for row in conn.execute(LOCK_TENSORS, {"ids": list(ids)})]


def delete_tensors(conn: Connection, ids: Sequence[int]) -> int:
    return conn.execute(DELETE_TENSORS, {"ids": list(ids)}).rowcount


def has_deltas(conn: Connection) -> bool:
    with conn.cursor(row_factory=scalar_row) as cursor:
        return bool(cursor.execute(HAS_DELTAS).fetchone())


def chunk_page(conn: Connection, *, after: bytes, batch: int) -> Span | None:
    return _span(conn, CHUNK_PAGE, after, batch)


def free_chunks(
    conn: Connection,
    span: Span,
    cutoff: datetime,
    *,
    deltas: bool,
    digests: Sequence[bytes] | None = None,
) -> list[bytes]:
    """The chunks of a page that may go: deltas, or those that are none."""
    rows = conn.execute(
        FREE_CHUNKS,
        {
            "after": span.after,
            "last": span.last,
            "cutoff": cutoff,
            "deltas": deltas,
            "digests": None if digests is None else list(digests),
        },
        binary=True,
    )
    return [as_bytes(row[0]) for row in rows]


def lock_chunks(conn: Connection, digests: Sequence[bytes]) -> list[bytes]:
    rows = conn.execute(LOCK_CHUNKS, {"digests": list(digests)}, binary=True)
    return [as_bytes(row[0]) for row in rows]


def delete_chunks(conn: Connection, digests: Sequence[bytes]) -> list[int]:
    """Delete locked chunks; the bytes of each one's body."""
    rows = conn.execute(DELETE_CHUNKS, {"digests": list(digests)}, binary=True)
    return [int(str(row[0])) for row in rows]


def lock_bodies(conn: Connection) -> None:
    """Wait for those who write to a body store, and keep them out until the transaction ends."""
    conn.execute(LOCK_BODIES)


def orphans(conn: Connection, digests: Sequence[bytes], store_id: int) -> list[bytes]:
    """Which of the bodies in a body store belong to no chunk."""
    parameters = {"digests": list(digests), "store_id": store_id}
    return [as_bytes(row[0]) for row in conn.execute(ORPHANS, parameters, binary=True)]


def _span(conn: Connection, sql: str, after: int | bytes, batch: int) -> Span | None:
    row = conn.execute(sql.encode(), {"after": after, "batch": batch}, binary=True).fetchone()
    last = None if row is None else row[0]
    if last is None:
        return None
    assert isinstance(last, (int, bytes))
    return Span(after=after, last=last)


def _free(
    conn: Connection, sql: str, span: Span, cutoff: datetime, ids: Sequence[int] | None
) -> list[Free]:
    with conn.cursor(row_factory=class_row(Free)) as cursor:
        return cursor.execute(
            sql.encode(),
            {
                "after": span.after,
                "last": span.last,
                "cutoff": cutoff,
                "ids": None if ids is None else list(ids),
            },
        ).fetchall()
