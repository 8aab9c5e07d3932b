"""SQL of inference sessions that are deleted, by their ids or by their age."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import LiteralString
from uuid import UUID

from arc_halo.store.rows import Connection, as_uuid

# Whoever records in one waits until it is gone.
LOCK_SESSIONS = """
SELECT id FROM inference_sessions WHERE id = ANY (%(ids)s::uuid[]) ORDER BY id FOR UPDATE
"""

# Over for so long, or begun so long ago and at work still.
OLD_SESSIONS = """
SELECT session_id, status = 'active'
FROM v_inference_sessions
WHERE CASE status WHEN 'active' THEN started_at ELSE coalesce(finished_at, heartbeat_at) END
    <= now() - %(age)s::interval
  AND (%(model)s::text IS NULL OR model_name = %(model)s)
  AND (%(version)s::text IS NULL OR model_version = %(version)s)
  AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
ORDER BY session_id
"""

COUNT_REQUESTS = """
SELECT count(*) FROM inference_metrics
WHERE session_id = ANY (%(ids)s::uuid[])
  AND (%(age)s::interval IS NULL OR recorded_at <= now() - %(age)s::interval)
"""

COUNT_CAPTURES = """
SELECT count(*) FROM attention_captures WHERE session_id = ANY (%(ids)s::uuid[])
"""

DELETE_REQUESTS = """
DELETE FROM inference_metrics
WHERE session_id = ANY (%(ids)s::uuid[]) AND recorded_at <= now() - %(age)s::interval
"""

DELETE_SESSIONS = """
DELETE FROM inference_sessions WHERE id = ANY (%(ids)s::uuid[])
"""


def lock(conn: Connection, ids: Sequence[UUID]) -> None:
    """Keep others from sessions until the transaction ends."""
    conn.execute(LOCK_SESSIONS, {"ids": list(ids)})


def old(
    conn: Connection,
    age: timedelta,
    *,
    model: str | None = None,
    version: str | None = None,
    tenant: str | None = None,
) -> dict[UUID, bool]:
    """Sessions that are over for so long, or began so long ago, and whether they are at work."""
    asked = {"age": age, "model": model, "version": version, "tenant": tenant}
    return {as_uuid(row[0]): bool(row[1]) for row in conn.execute(OLD_SESSIONS, asked)}


def count_requests(conn: Connection, ids: Sequence[UUID], age: timedelta | None = None) -> int:
    """How many requests of sessions have their metrics kept; with an `age` those of that age."""
    return _count(conn, COUNT_REQUESTS, {"ids": list(ids), "age": age})


def count_captures(conn: Connection, ids: Sequence[UUID]) -> int:
    """How many captures of attention belong to sessions."""
    return _count(conn, COUNT_CAPTURES, {"ids": list(ids)})


def delete_requests(conn: Connection, ids: Sequence[UUID], age: timedelta) -> int:
    """Delete the metrics of requests of that age; how many there were."""
    return conn.execute(DELETE_REQUESTS, {"ids": list(ids), "age": age}).rowcount


def delete(conn: Connection, ids: Sequence[UUID]) -> None:
    """Delete sessions with their metrics and their captures of attention."""
    conn.execute(DELETE_SESSIONS, {"ids": list(ids)})


def _count(conn: Connection, query: LiteralString, asked: dict[str, object]) -> int:
    row = conn.execute(query, asked).fetchone()
    assert row is not None
    return int(row[0])
