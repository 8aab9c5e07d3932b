"""Sessions deleted, with their points and checkpoints: looked at first, refused where it hurts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from arc_halo.errors import NotFoundError, RefusedError
from arc_halo.store import checkpoints, training_deleting, training_reading, training_sessions
from arc_halo.store.checkpoints import Checkpoint
from arc_halo.store.rows import Connection
from arc_halo.store.training_reading import SessionRow
from arc_halo.store.training_sessions import Program
from arc_halo.training.programs import is_alive


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """What goes with sessions, and what `forks` stay without a part of their history.

    Nothing but their checkpoints needs `own_bytes` of what is stored: a collection frees them.
    """

    sessions: Sequence[SessionRow]
    at_work: frozenset[UUID]
    points: Mapping[UUID, int]
    checkpoints: Sequence[Checkpoint]
    forks: Sequence[SessionRow]
    own_bytes: int

    @property
    def pinned(self) -> Sequence[Checkpoint]:
        return [point for point in self.checkpoints if point.is_pinned]


def look(conn: Connection, ids: Sequence[UUID], program: Program) -> Deletion:
    """What would go. Raises `NotFoundError` for a session that is gone already."""
    sessions = {row.id: row for row in training_reading.sessions(conn, ids=ids)}
    records = [training_sessions.find(conn, id_) for id_ in ids]
    for id_, record in zip(ids, records, strict=True):
        if record is None or id_ not in sessions:
            raise NotFoundError(f"there is no training session {id_} any more")
    heirs = training_deleting.heirs(conn, ids)
    points = checkpoints.checkpoints(conn, ids)
    return Deletion(
        sessions=[sessions[id_] for id_ in ids],
        at_work=frozenset(each.id for each in records if each and is_alive(each, program)),
        points=training_deleting.count_points(conn, ids),
        checkpoints=points,
        forks=training_reading.sessions(conn, ids=heirs)[::-1] if heirs else [],
        own_bytes=checkpoints.own_bytes(conn, [point.id for point in points]),
    )


def check(found: Deletion, *, force: bool) -> None:
    """Raise `RefusedError` for a session that a program is at work on; without `force` for pinned
    checkpoints too, and for forks that would lose history."""
    if found.at_work:
        busy = [each for each in found.sessions if each.id in found.at_work]
        raise RefusedError(
            f"a program is at work on the session {_names(busy)}: it is not deleted",
            hint="end that program first, or wait: without a sign of life it has crashed after "
            "a minute",
            code="AH076",
        )
    if found.pinned and not force:
        steps = ", ".join(str(point.step) for point in found.pinned[:10])
        raise RefusedError(
            f"checkpoints are pinned, of the steps {steps}{', …' * bool(found.pinned[10:])}",
            hint="unpin them, or say that they go too: `--force`, in Python force=True",
            code="AH054",
        )
    if found.forks and not force:
        raise RefusedError(
            f"other sessions went on from there and would lose that part of their history: "
            f"{_names(found.forks)}",
            hint="delete them with it, or say that it may be lost: `--force`, in Python force=True",
            code="AH054",
        )


def delete(
    conn: Connection, ids: Sequence[UUID], program: Program, *, force: bool = False
) -> Deletion:
    """Delete sessions, all or none, and tell what went. Raises what `look` and `check` do."""
    with conn.transaction():
        training_deleting.lock(conn, ids)
        found = look(conn, ids, program)
        check(found, force=force)
        training_deleting.delete(conn, ids)
    return found


def _names(sessions: Sequence[SessionRow]) -> str:
    named = ", ".join(each.name or str(each.id) for each in sessions[:10])
    return named + ", …" * bool(sessions[10:])
