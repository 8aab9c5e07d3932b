"""Batches of requests into the database: each once, however often it is tried."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from arc_halo.errors import DatabaseError, NotFoundError
from arc_halo.inference.metrics import Batch
from arc_halo.store import inference_metrics, inference_sessions
from arc_halo.store.patience import PATIENCE_SECONDS, PatientConnection
from arc_halo.store.rounds import RETRY_SECONDS
from arc_halo.store.rows import Connection


class SessionGoneError(NotFoundError):
    """The session was deleted: nothing more is written to it."""


class Delivery:
    """Writes what a session records, on a connection of its own.

    After an error it is not known whether a batch came through: it is given again, as it was. The
    session has the number of its last batch, so that none counts twice. Raises `DatabaseError`,
    `SessionGoneError`.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        session_id: UUID,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._line = PatientConnection(connect, patience_seconds=patience_seconds)
        self._session_id = session_id

    def deliver(self, batch: Batch) -> None:
        """Write a batch and count it, in one transaction."""
        with self._line.guarded() as conn, conn.transaction():
            if inference_sessions.count(conn, self._session_id, batch.number, batch.tally):
                if batch.requests:
                    inference_metrics.copy_requests(conn, self._session_id, batch.requests)
            elif not inference_sessions.exists(conn, self._session_id):
                raise _gone(self._session_id)

    def beat(self) -> None:
        """Give a sign of life."""
        with self._line.guarded() as conn:
            is_there = inference_sessions.beat(conn, self._session_id)
        if not is_there:
            raise _gone(self._session_id)

    def end(self, status: str, error: str | None, *, timeout: float) -> None:
        """Say how it ended, as often as has to be tried, for so many seconds."""
        until = time.monotonic() + timeout
        self._line.patience_seconds = min(timeout, self._line.patience_seconds)
        while True:
            try:
                with self._line.guarded() as conn:
                    inference_sessions.end(conn, self._session_id, status, error)
            except DatabaseError:
                if time.monotonic() + RETRY_SECONDS > until:
                    raise
                time.sleep(RETRY_SECONDS)
            else:
                return

    def give_up(self) -> None:
        """Write nothing more: whoever waits for the database gets an error."""
        self._line.end()

    def close(self) -> None:
        self._line.close()


def _gone(session_id: UUID) -> SessionGoneError:
    return SessionGoneError(
        f"the inference session {session_id} was deleted: its requests are not recorded"
    )
