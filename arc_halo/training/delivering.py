"""Batches of points into the database: each in one transaction, however often it is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from arc_halo.errors import TrainingError
from arc_halo.store import gradients, training_points, training_sessions
from arc_halo.store.gradients import GradientRow
from arc_halo.store.patience import PATIENCE_SECONDS, PatientConnection
from arc_halo.store.rows import Connection
from arc_halo.training.points import Batch, highest_steps, split


class LeaseLostError(TrainingError):
    """Another program has taken the session up, or it has ended: nothing more is written to it."""


def lease_lost() -> LeaseLostError:
    return LeaseLostError(
        "the training session is no longer this program's: "
        "it was ended, deleted, or taken up elsewhere",
        hint="`arc-halo training show` says by whom",
    )


class Delivery:
    """Writes what a session logs, on a connection of its own, which it opens anew when it must.

    `lease` says that the session is this program's. A batch may be given again after an error,
    whether or not it was written: nothing is there twice. A server that does not answer within
    `patience_seconds` is given up. Raises `DatabaseError`, `LeaseLostError`.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        session_id: UUID,
        lease: UUID,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._line = PatientConnection(connect, patience_seconds=patience_seconds)
        self._session_id = session_id
        self._lease = lease
        self._numbers: dict[training_points.Key, int] = {}
        self._highest: dict[int, int] = {}
        """The highest step that each series is known to have, by its number."""

    def deliver(
        self,
        batch: Batch,
        *,
        step: int | None = None,
        epoch: float | None = None,
        is_late: bool = False,
    ) -> None:
        """Write a batch, with the sign of life and how far the training is.

        One that `is_late` has waited in a spool: it replaces nothing that was recorded since.
        """
        with self._guarded() as conn, conn.transaction():
            # It keeps whoever wants to take the session up waiting until the points are in.
            self._beat(conn, step, epoch)
            self._write(conn, batch, is_late=is_late)

    def deliver_leftover(self, batch: Batch) -> None:
        """Write a batch that a program has left in a spool, whosever the session is now."""
        with self._guarded() as conn, conn.transaction():
            self._write(conn, batch, is_late=True)
            if (step := batch.last_step()) is not None:
                training_sessions.reach(conn, self._session_id, step)

    def record_gradients(self, rows: Sequence[GradientRow]) -> None:
        """Record with the weights of the session's model what was last of their gradients."""
        with self._guarded() as conn, conn.transaction():
            gradients.set_norms(conn, self._session_id, self._lease, rows)

    def end(self, status: str, error: str | None) -> None:
        """End the session, or pause it."""
        with self._guarded() as conn:
            is_ours = training_sessions.end(conn, self._session_id, self._lease, status, error)
        if not is_ours:
            raise lease_lost()

    def close(self) -> None:
        """Close the connection, and forget what was found there."""
        self._line.close()
        self._numbers, self._highest = {}, {}

    @contextmanager
    def _guarded(self) -> Iterator[Connection]:
        try:
            is_new = not self._line.is_open
            with self._line.guarded() as conn:
                if is_new:
                    self._look(conn)
                yield conn
        except BaseException:
            # Whether it was committed is not known: what is there is looked up anew.
            self.close()
            raise

    def _look(self, conn: Connection) -> None:
        known = training_points.series(conn, self._session_id)
        self._numbers = {key: number for key, (number, _) in known.items()}
        self._highest = dict(known.values())

    def _beat(self, conn: Connection, step: int | None, epoch: float | None) -> None:
        if not training_sessions.beat(conn, self._session_id, self._lease, step=step, epoch=epoch):
            raise lease_lost()

    def _write(self, conn: Connection, batch: Batch, *, is_late: bool) -> None:
        points = self._number(conn, batch)
        new, known = split(points, self._highest)
        if len(new):
            training_points.copy_points(conn, new)
        if len(known):
            training_points.merge_points(conn, known, is_late=is_late)
        # Taken back by `close` where the transaction fails.
        self._highest |= highest_steps(new)

    def _number(self, conn: Connection, batch: Batch) -> training_points.Points:
        if missing := [key for key in batch.keys if key not in self._numbers]:
            training_points.add_series(conn, self._session_id, missing)
            self._look(conn)
        return batch.numbered(self._numbers)
