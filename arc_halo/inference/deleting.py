"""Inference sessions deleted, by name or by age, with what their requests took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError
from arc_halo.inference.reading import model_filter
from arc_halo.plain import check_texts
from arc_halo.store import inference_deleting, inference_sessions
from arc_halo.store.inference_sessions import SessionRow
from arc_halo.store.rows import Connection

MAX_AGE = timedelta(days=36_500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """Sessions that go, and with them what so many requests took and so many captures of attention.

    Of sessions at work, which stay, `trimmed` requests are old enough to go.
    """

    sessions: Sequence[SessionRow]
    requests: int
    captures: int
    trimmed: int = 0


def look(conn: Connection, ids: Sequence[UUID]) -> Deletion:
    """What would go. Raises `NotFoundError` for a session that is gone already."""
    found = _deletion(conn, ids)
    if gone := set(ids) - {each.id for each in found.sessions}:
        raise NotFoundError(f"there is no inference session {min(gone)} any more")
    return found


def check(found: Deletion) -> None:
    """Raise `RefusedError` for a session that a program is at work on."""
    if busy := [str(each.id) for each in found.sessions if each.status == "active"]:
        raise RefusedError(
            f"a program is at work on the session {', '.join(busy[:10])}{', …' * bool(busy[10:])}: "
            "it is not deleted",
            hint="end that program first, or wait: without a sign of life it has crashed after "
            "a minute",
            code="AH076",
        )


def delete(conn: Connection, ids: Sequence[UUID]) -> Deletion:
    """Delete sessions, all or none, and tell what went. Raises what `look` and `check` do."""
    with conn.transaction():
        inference_deleting.lock(conn, ids)
        found = look(conn, ids)
        check(found)
        inference_deleting.delete(conn, ids)
    return found


def prune(
    conn: Connection,
    older_than: timedelta,
    *,
    model: str | None = None,
    tenant: str | None = None,
    dry_run: bool = False,
) -> Deletion:
    """Delete sessions that are over for so long, and what requests of that age took of those that
    are at work. Raises `InvalidInputError` for what is no age."""
    check_texts(tenant=tenant)
    if not isinstance(older_than, timedelta) or not timedelta(0) <= older_than <= MAX_AGE:
        raise InvalidInputError(
            f"older_than={older_than!r:.80} is no age",
            hint="write a timedelta, such as timedelta(days=30)",
            code="AH007",
        )
    name, version = model_filter(conn, model)
    with conn.transaction():
        old = inference_deleting.old(conn, older_than, model=name, version=version, tenant=tenant)
        at_work = [id for id, is_at_work in old.items() if is_at_work]
        found = _deletion(conn, [id for id, is_at_work in old.items() if not is_at_work])
        if dry_run:
            trimmed = inference_deleting.count_requests(conn, at_work, older_than)
        else:
            trimmed = inference_deleting.delete_requests(conn, at_work, older_than)
            inference_deleting.delete(conn, [each.id for each in found.sessions])
    return replace(found, trimmed=trimmed)


def _deletion(conn: Connection, ids: Sequence[UUID]) -> Deletion:
    return Deletion(
        sessions=inference_sessions.sessions(conn, ids=ids),
        requests=inference_deleting.count_requests(conn, ids),
        captures=inference_deleting.count_captures(conn, ids),
    )
