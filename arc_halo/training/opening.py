"""Training sessions begun, and taken up where a program was lost."""

from __future__ import annotations

import logging
from typing import Literal
from uuid import UUID

from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError
from arc_halo.store import training_points, training_sessions
from arc_halo.store.rows import Connection
from arc_halo.store.training_sessions import NewSession, Program, SessionRecord
from arc_halo.store.trainings import Training
from arc_halo.training.checkpoints.checkpoints import Keeping
from arc_halo.training.configs import changed
from arc_halo.training.logging import LogSettings
from arc_halo.training.places import Place
from arc_halo.training.programs import SILENT_SECONDS, is_alive
from arc_halo.training.sessions import TrainingSession
from arc_halo.types import JsonObject

logger = logging.getLogger("arc_halo.training")

Resume = Literal["never", "allow", "must"]


def begin(
    place: Place,
    new: NewSession,
    *,
    settings: LogSettings,
    program: Program,
    keeping: Keeping | None = None,
    training: Training | None = None,
) -> TrainingSession:
    """A new session."""
    with place.connection() as conn:
        session_id, lease = training_sessions.begin(conn, new, program)
        record = _found(conn, session_id)
    return TrainingSession(
        place,
        record,
        lease,
        settings,
        is_resumed=False,
        is_new=record.forked_at_step is None,
        keeping=keeping,
        training=training,
    )


def resume(
    place: Place,
    record: SessionRecord,
    config: JsonObject,
    *,
    settings: LogSettings,
    program: Program,
    keeping: Keeping | None = None,
    training: Training | None = None,
) -> TrainingSession:
    """Go on with a session that was paused, failed, or lost its program.

    A `config` that differs from what it had is told, and takes its place. Raises `RefusedError`
    for a session that is at work, or completed.
    """
    _check_resumable(record, program)
    if config and (differences := changed(record.config, config)):
        logger.warning("the session goes on with another config: %s", ", ".join(differences))
    with place.connection() as conn:
        lease = training_sessions.take_up(conn, record, config or record.config, program)
        if lease is None:
            raise RefusedError(
                f"another program has just taken up the session {record.id}",
                hint="wait for it to end, or begin a session of your own",
                code="AH076",
            )
        record = _found(conn, record.id)
        # Its program may have been lost before it had written anything.
        is_new = record.forked_at_step is None and record.current_step == 0
        is_new = is_new and not training_points.series(conn, record.id)
    return TrainingSession(
        place,
        record,
        lease,
        settings,
        is_resumed=True,
        is_new=is_new,
        keeping=keeping,
        training=training,
    )


def check_resume(resume: str) -> None:
    """Raise `InvalidInputError` for a word that is none of `Resume`."""
    if resume not in ("never", "allow", "must"):
        raise InvalidInputError(
            f"resume={resume!r} makes no sense",
            hint="write 'never', 'allow' or 'must'",
            code="AH006",
        )


def _check_resumable(record: SessionRecord, program: Program) -> None:
    if record.status == "completed":
        raise RefusedError(
            f"the session {record.name or record.id} is completed",
            hint="begin another, or fork it from one of its steps",
            code="AH076",
        )
    if is_alive(record, program):
        raise RefusedError(
            f"the session {record.name or record.id} is at work on {record.host}: it gave a sign "
            f"of life {record.silent_seconds:.0f} s ago",
            hint=f"if its program is gone, try again when {SILENT_SECONDS:.0f} s have passed",
            code="AH076",
        )


def _found(conn: Connection, session_id: UUID) -> SessionRecord:
    record = training_sessions.find(conn, session_id)
    if record is None:
        raise NotFoundError(f"there is no training session {session_id}")
    return record
