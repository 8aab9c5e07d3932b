"""SQL of sessions that are deleted: what goes with them, and who has their history too."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from arc_halo.store.rows import Connection, as_uuid

# Whoever logs to one, saves in one, or forks one waits until they are gone.
LOCK_SESSIONS = """
SELECT id FROM training_sessions WHERE id = ANY (%(ids)s::uuid[]) ORDER BY id FOR UPDATE
"""

# Those that went on from a fork have its history, and what that has of its parent's.
HEIRS = """
WITH RECURSIVE heir AS (
    SELECT id FROM training_sessions
    WHERE parent_id = ANY (%(ids)s::uuid[]) AND forked_at_step IS NOT NULL
    UNION
    SELECT child.id FROM heir
    JOIN training_sessions AS child ON child.parent_id = heir.id
    WHERE child.forked_at_step IS NOT NULL
)
SELECT id FROM heir WHERE id <> ALL (%(ids)s::uuid[])
"""

COUNT_POINTS = """
SELECT series.session_id, sum(own.count)::bigint
FROM training_series AS series
CROSS JOIN LATERAL (
    SELECT count(*) FROM training_metrics AS point WHERE point.series_id = series.id
) AS own
WHERE series.session_id = ANY (%(ids)s::uuid[])
GROUP BY series.session_id
"""

DELETE_SESSIONS = """
DELETE FROM training_sessions WHERE id = ANY (%(ids)s::uuid[])
"""


def lock(conn: Connection, ids: Sequence[UUID]) -> set[UUID]:
    """Keep others from sessions until the transaction ends; those that are there."""
    return {as_uuid(row[0]) for row in conn.execute(LOCK_SESSIONS, {"ids": list(ids)})}


def heirs(conn: Connection, ids: Sequence[UUID]) -> list[UUID]:
    """The sessions, but these, whose history is in part theirs."""
    return [as_uuid(row[0]) for row in conn.execute(HEIRS, {"ids": list(ids)})]


def count_points(conn: Connection, ids: Sequence[UUID]) -> dict[UUID, int]:
    """How many points sessions have of their own; of those that have any."""
    rows = conn.execute(COUNT_POINTS, {"ids": list(ids)})
    return {as_uuid(id_): int(str(count)) for id_, count in rows}


def delete(conn: Connection, ids: Sequence[UUID]) -> None:
    """Delete sessions with their points and checkpoints; forks of them stay, without a parent."""
    conn.execute(DELETE_SESSIONS, {"ids": list(ids)})
