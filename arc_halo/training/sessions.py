"""Training sessions: begun, taken up where a program was lost, logged to, and ended."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from uuid import UUID

from arc_halo.config import redact
from arc_halo.errors import (
    ArcHaloError,
    CheckpointError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
    TrainingError,
)
from arc_halo.store import gradient_checkpoints, training_points, training_sessions
from arc_halo.store.connection import translate
from arc_halo.store.gradient_checkpoints import GradientCheckpoint
from arc_halo.store.rows import Connection
from arc_halo.store.training_sessions import NewSession, Program, SessionRecord
from arc_halo.store.trainings import Training
from arc_halo.training.checkpoints.checkpoints import Checkpoints, Keeping
from arc_halo.training.checkpoints.of_sessions import Checkpointing
from arc_halo.training.configs import changed, check_plain, covered
from arc_halo.training.delivering import Delivery, LeaseLostError, lease_lost
from arc_halo.training.logging import LogSettings, PointLog
from arc_halo.training.points import SYSTEM
from arc_halo.training.recomputing import RecomputingPlan
from arc_halo.training.recording import GradientRecorder, Recording
from arc_halo.training.spool import ENDS, Spool
from arc_halo.training.steps import MAX_STEP, whole_step
from arc_halo.training.system import SystemMetrics
from arc_halo.types import JsonObject
from arc_halo.weights.store import WeightStore

logger = logging.getLogger("arc_halo.training")

Resume = Literal["never", "allow", "must"]
SILENT_SECONDS = 60.0
"""After so long without a sign of life a session counts as crashed."""

MAX_ERROR = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a program keeps its sessions: the database, and a directory for what has to wait."""

    connect: Callable[[], Connection]
    spool_directory: Path
    weights: Callable[[], WeightStore]


class TrainingSession(Checkpointing, Recording):
    """A run of training, for use in a `with`: `run.log({"loss": 2.1}, step=7)`.

    Leaving the `with` ends it as completed; with an exception as failed, with Ctrl-C as paused.
    """

    def __init__(
        self,
        place: Place,
        record: SessionRecord,
        lease: UUID,
        settings: LogSettings,
        *,
        is_resumed: bool,
        is_new: bool,
        keeping: Keeping | None = None,
        training: Training | None = None,
    ) -> None:
        self.id = record.id
        self.name = record.name
        self.model = record.model
        self.config = record.config
        self.training = training
        """What the manifest declares of it."""
        self.is_resumed = is_resumed
        self.step = record.current_step
        """The step that was logged last."""
        self._connect = place.connect
        self._lease = lease
        self._is_over = False
        self._is_new = is_new
        self._spool = Spool(
            place.spool_directory / str(record.id), limit_bytes=settings.spool_bytes
        )
        # A disk that gives nothing away takes no points either: that is told.
        with suppress(OSError):
            self._spool.drop_end()
            self._spool.drop_torn()
        self._delivery = Delivery(place.connect, record.id, lease)
        self._log = PointLog(self._delivery, self._spool, settings)
        self._gradients = GradientRecorder(
            Delivery(place.connect, record.id, lease), place.weights, record.id, lease, record.model
        )
        self._system = _measured(self._log, record, settings)
        # A checkpoint is seen after what was logged before it, or a resume would leave a gap.
        self.checkpoints = Checkpoints(
            place.weights, record.id, lease=lease, keeping=keeping, settle=self._log.flush
        )
        atexit.register(self.end_with_program)

    def log(
        self,
        metrics: Mapping[str, Any],
        *,
        step: int | None = None,
        epoch: float | None = None,
        scope: str = "train",
    ) -> None:
        """Record metrics of a step: numbers, NaN and infinities too, or one-element tensors.

        It only queues them: nothing here waits for the database, or raises. Without `step` it is
        the one after the last. A step that is logged again replaces what was there.
        """
        if self._is_over:
            self._log.tell("end", "points were logged after the end of the session: not recorded")
            return
        given = step
        if step is None:
            step = self.next_step
        elif type(step) is not int:
            step = whole_step(step)
        if step is None or not 0 <= step <= MAX_STEP:
            self._log.tell(
                "step",
                f"points were not recorded: their step, {_shown(given)}, is no whole number from 0",
            )
            return
        self._is_new = False
        self.step = step
        self._log.put(metrics, step, epoch, scope)

    def record_recomputing(self, plan: RecomputingPlan) -> None:
        """Record which layers are computed again in the backward pass, in place of what was
        recorded before. It waits for the database; raises `DatabaseError`."""
        rows = [GradientCheckpoint(**asdict(layer)) for layer in plan.layers]
        with _opened(self._connect) as conn, conn.transaction():
            gradient_checkpoints.replace(conn, self.id, rows)

    @property
    def next_step(self) -> int:
        """The step to go on with: the one after the last, 0 where nothing was logged yet."""
        return 0 if self._is_new else self.step + 1

    @property
    def dropped(self) -> int:
        """How many points could be kept nowhere; 0 unless the local disk fails too."""
        return self._log.dropped

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was logged is in the database.

        False where it is not: the database is away, and the points wait in the spool.
        """
        return self._log.flush(timeout) and self._gradients.settle()

    def configure(
        self,
        config: JsonObject | None = None,
        *,
        total_epochs: int | None = None,
        total_steps: int | None = None,
    ) -> None:
        """Add to the config what is known only now, and say how long the training will be.

        Keys that are there are replaced. Raises `InvalidInputError` for what JSON does not hold,
        `DatabaseError`, and `TrainingError` where the session is no longer this program's.
        """
        check_plain(config=config)
        with _opened(self._connect) as conn:
            whole = training_sessions.configure(
                conn,
                self.id,
                self._lease,
                config=covered(config or {}),
                total_epochs=total_epochs,
                total_steps=total_steps,
            )
        if whole is None:
            raise lease_lost()
        self.config = whole

    def finish(self, status: str = "completed", error: str | None = None) -> None:
        """Write what waits, and end the session; `paused` leaves it to be resumed.

        With the database away its points and its end wait in the spool: `halo.training.sync()`.
        Raises what went wrong with a checkpoint that was being saved, when all else is done, and
        `InvalidInputError` for a status that is no end.
        """
        if status not in ENDS:
            raise InvalidInputError(
                f"status={status!r} is no end of a session",
                hint=f"write {', '.join(ENDS)}",
                code="AH006",
            )
        if (trouble := self._end(status, error)) is not None:
            raise trouble

    def pause(self) -> None:
        """End it for now: `resume` goes on with it."""
        self.finish("paused")

    def end_with_program(self) -> None:
        """End a session that its program does not: as failed where an exception ends that."""
        failed = getattr(sys, "last_value", None)
        if failed is None:
            self._end_without_raising("completed", None)
        elif isinstance(failed, KeyboardInterrupt):
            self._end_without_raising("paused", None)
        else:
            self._end_without_raising("failed", _told(failed))

    def __enter__(self) -> TrainingSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if value is None or (isinstance(value, SystemExit) and not value.code):
            self.finish()
        elif isinstance(value, KeyboardInterrupt):
            self._end_without_raising("paused", None)
        else:
            self._end_without_raising("failed", _told(value))

    def _check_at_work(self) -> None:
        if self._is_over or self._log.is_forked:
            where = "over" if self._is_over else "another process's"
            raise CheckpointError(f"the training session is {where}: nothing is saved in it here")

    def _end(self, status: str, error: str | None) -> Exception | None:
        """End it, and what went wrong with a checkpoint that was being saved."""
        if self._is_over or self._log.is_forked:
            return None
        self._is_over = True
        try:
            trouble = self._close_checkpoints()
            if self._system is not None:
                self._system.close()
            is_written = self._log.close()
            self._gradients.close()
            self._tell_end(is_written, status, None if error is None else _cleaned(error))
        except BaseException:  # Ctrl-C, while the database is waited for: it has not ended yet
            self._is_over = False
            raise
        atexit.unregister(self.end_with_program)
        return trouble

    def _tell_end(self, is_written: bool, status: str, error: str | None) -> None:
        """Tell the database how it ended, or where that cannot be, the local disk."""
        try:
            if is_written:
                self._delivery.end(status, error)
            elif not self._log.is_lost:
                self._leave_end(status, error)
        except LeaseLostError as exc:
            logger.warning("%s", exc.message)
        except ArcHaloError:
            self._leave_end(status, error)
        finally:
            self._delivery.close()
            if self._spool.files() or self._spool.end():
                logger.warning(
                    "the end of the session waits on the local disk, in %s: "
                    "`arc-halo training sync` writes it",
                    self._spool.directory,
                )

    def _leave_end(self, status: str, error: str | None) -> None:
        try:
            self._spool.put_end(self._lease, status, error)
        except TrainingError as exc:
            logger.warning("%s", exc.message)

    def _end_without_raising(self, status: str, error: str | None) -> None:
        """End it where an exception is under way already, or nobody is there to catch one."""
        if (trouble := self._end(status, error)) is not None:
            logger.error("the last checkpoint was not saved: %s", _told(trouble))


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
    with _opened(place.connect) as conn:
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
    with _opened(place.connect) as conn:
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


def _measured(log: PointLog, record: SessionRecord, settings: LogSettings) -> SystemMetrics | None:
    if settings.system_seconds is None:
        return None
    return SystemMetrics(
        lambda found, second: log.put(found, second, None, SYSTEM),
        seconds=settings.system_seconds,
        started_at=record.started_at.timestamp(),
    )


def is_alive(record: SessionRecord, program: Program) -> bool:
    """Whether a program is at work on a session, as far as `program` can tell.

    It gave a sign of life within a minute; where it is one of this host, its process is there.
    """
    if record.status != "running" or record.silent_seconds >= SILENT_SECONDS:
        return False
    is_here = record.host == program.host and record.pid is not None
    return not is_here or _is_process(record.pid or 0)


def this_program(git_commit: str | None = None, git_dirty: bool | None = None) -> Program:
    return Program(
        host=socket.gethostname(), pid=os.getpid(), git_commit=git_commit, git_dirty=git_dirty
    )


def sync(place: Place) -> dict[UUID, int]:
    """Write what sessions of this machine left in their spools; how many points of each.

    Those of running sessions are left to them. So are those that the database does not know: it
    may be another database. Raises `DatabaseError`, `TrainingError`, when all else is written.
    """
    written: dict[UUID, int] = {}
    trouble: ArcHaloError | None = None
    for directory in sorted(place.spool_directory.glob("*-*-*-*-*")):
        try:
            session_id = UUID(directory.name)
        except ValueError:
            continue
        try:
            count = _sync_one(place, directory, session_id)
        except ArcHaloError as exc:
            logger.warning("what waits in %s could not be written: %s", directory, exc.message)
            trouble = trouble or exc
        else:
            if count is not None:
                written[session_id] = count
    if trouble is not None:
        raise trouble
    return written


def _sync_one(place: Place, directory: Path, session_id: UUID) -> int | None:
    """How many points of a session were written; None where it is left alone."""
    with _opened(place.connect) as conn:
        record = training_sessions.find(conn, session_id)
    if record is None:
        logger.warning(
            "this database has no session %s: what waits in %s is left there. "
            "Remove the directory if the session was deleted",
            session_id,
            directory,
        )
        return None
    spool = Spool(directory, limit_bytes=0)
    ended = spool.end()
    is_over = ended is not None and ended[0] == record.lease
    if not is_over and is_alive(record, this_program()):
        return None
    count = 0
    for path, batch in spool.batches():
        delivery = Delivery(place.connect, record.id, record.lease)
        try:
            delivery.deliver_leftover(batch)
        finally:
            delivery.close()
        count += len(batch)
        spool.drop(path)
    if ended is not None:
        lease, status, error = ended
        with _opened(place.connect) as conn:
            training_sessions.end(conn, record.id, lease, status, error)
    spool.drop_end()
    spool.drop_torn()
    spool.close()
    return count


@contextmanager
def _opened(connect: Callable[[], Connection]) -> Iterator[Connection]:
    """A connection for a moment, whose errors are ours."""
    with translate(), connect() as conn:
        yield conn


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


def _told(error: BaseException) -> str:
    """What is kept of why a session failed."""
    try:
        return _cleaned(f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001 - what an error says of itself may be an error
        return type(error).__name__


def _cleaned(text: str) -> str:
    """One line that can be stored, without the passwords of addresses."""
    storable = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return redact(" ".join(storable.split()))[:MAX_ERROR]


def _shown(given: Any) -> str:
    """What was given, as far as it can be told."""
    try:
        return repr(given)[:80]
    except Exception:  # noqa: BLE001 - what cannot be shown must not end a training either
        return type(given).__name__


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_resume(resume: str) -> None:
    """Raise `InvalidInputError` for a word that is none of `Resume`."""
    if resume not in ("never", "allow", "must"):
        raise InvalidInputError(
            f"resume={resume!r} makes no sense",
            hint="write 'never', 'allow' or 'must'",
            code="AH006",
        )
