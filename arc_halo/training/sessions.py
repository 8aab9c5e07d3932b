"""Training sessions at work: logged to, saved and restored, and ended."""

from __future__ import annotations

import atexit
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any
from uuid import UUID

from arc_halo.errors import (
    ArcHaloError,
    CheckpointError,
    InvalidInputError,
    TrainingError,
)
from arc_halo.plain import check_plain, cleaned, covered, told
from arc_halo.store import gradient_checkpoints, training_sessions
from arc_halo.store.gradient_checkpoints import GradientCheckpoint
from arc_halo.store.training_sessions import SessionRecord
from arc_halo.store.trainings import Training
from arc_halo.training.checkpoints.checkpoints import Checkpoints, Keeping
from arc_halo.training.checkpoints.of_sessions import Checkpointing
from arc_halo.training.delivering import Delivery, LeaseLostError, lease_lost
from arc_halo.training.logging import LogSettings, PointLog
from arc_halo.training.places import Place
from arc_halo.training.points import SYSTEM
from arc_halo.training.recomputing import RecomputingPlan
from arc_halo.training.recording import GradientRecorder, Recording
from arc_halo.training.spool import ENDS, Spool
from arc_halo.training.steps import MAX_STEP, whole_step
from arc_halo.training.system import SystemMetrics
from arc_halo.types import JsonObject

logger = logging.getLogger("arc_halo.training")


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
        self._place = place
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
        with self._place.connection() as conn, conn.transaction():
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
        """Wait until all that was logged is in the database, for `timeout` seconds.

        False where it is not: the database is away, and the points wait in the spool. Without a
        timeout it is tried once.
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
        with self._place.connection() as conn:
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
            self._end_without_raising("failed", told(failed))

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
            self._end_without_raising("failed", told(value))

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
            self._tell_end(is_written, status, None if error is None else cleaned(error))
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
            logger.error("the last checkpoint was not saved: %s", told(trouble))


def _measured(log: PointLog, record: SessionRecord, settings: LogSettings) -> SystemMetrics | None:
    if settings.system_seconds is None:
        return None
    return SystemMetrics(
        lambda found, second: log.put(found, second, None, SYSTEM),
        seconds=settings.system_seconds,
        started_at=record.started_at.timestamp(),
    )


def _shown(given: Any) -> str:
    """What was given, as far as it can be told."""
    try:
        return repr(given)[:80]
    except Exception:  # noqa: BLE001 - what cannot be shown must not end a training either
        return type(given).__name__
