"""What `session.record` does: requests queued at once, and written by a thread of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from arc_halo.inference.checking import check_number
from arc_halo.inference.delivering import Delivery, SessionGoneError
from arc_halo.inference.metrics import Batch, request_metrics, tally
from arc_halo.store.inference_metrics import RequestMetrics
from arc_halo.store.inference_sessions import Tally
from arc_halo.store.rounds import Rounds

logger = logging.getLogger("arc_halo.inference")

MIN_SECONDS = 0.001
MAX_FLUSH_SECONDS = 60.0
MAX_HEARTBEAT_SECONDS = 30.0
"""After a minute of silence a session counts as crashed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSettings:
    """How often requests are written, or a sign of life is given, and how many may wait."""

    flush_seconds: float = 1.0
    heartbeat_seconds: float = 10.0
    queue_requests: int = 100_000


def record_settings(
    *, flush_seconds: float, heartbeat_seconds: float, queue_requests: int
) -> RecordSettings:
    """Settings that make sense. Raises `InvalidInputError`."""
    check_number("flush_seconds", flush_seconds, MIN_SECONDS, MAX_FLUSH_SECONDS)
    check_number("heartbeat_seconds", heartbeat_seconds, MIN_SECONDS, MAX_HEARTBEAT_SECONDS)
    check_number("queue_requests", queue_requests, 1, is_whole=True)
    return RecordSettings(
        flush_seconds=flush_seconds,
        heartbeat_seconds=heartbeat_seconds,
        queue_requests=queue_requests,
    )


class RequestLog(Rounds):
    """A queue of requests and the thread that empties it. `put` neither blocks nor raises.

    While the database is away requests wait in memory. Where there are too many the oldest are
    lost: they are counted still, but what they took is not kept.
    """

    def __init__(self, delivery: Delivery, settings: RecordSettings) -> None:
        super().__init__(
            "arc-halo-requests", settings.flush_seconds, "requests wait in memory", logger
        )
        self._delivery = delivery
        self._settings = settings
        self._guard = threading.RLock()
        """Of what follows; held for a moment. A signal's handler may record, too."""
        self._queue: deque[RequestMetrics] = deque()
        self._lost = Tally()
        self._unwritten: Batch | None = None
        """What the thread is writing, until it is known to be written."""
        self._number = 0
        self._beat_at = time.monotonic()
        self.dropped = 0
        """How many requests' metrics are lost."""
        self._thread.start()

    def put(self, **given: Any) -> None:
        """Queue a request. What makes no sense is left out, with a warning the first time."""
        if self.is_forked:
            self.tell("fork", "requests that a forked process answers are not recorded")
            return
        if self.is_lost:
            self.dropped += 1
            return
        try:
            request = request_metrics(recorded_at=time.time(), complain=self.tell, **given)
            if request is not None:
                self._queue_up(request)
        except Exception as exc:  # noqa: BLE001 - recording must not end a request
            self.tell("put", f"requests were not recorded: {type(exc).__name__}: {exc}")

    def close(self, timeout: float) -> bool:
        """Write what waits, and end the thread; False where some is lost, as what is not written
        by then."""
        is_written = self.flush(timeout)
        self._is_closing = True
        if not is_written:
            self.is_lost = True
            self._delivery.give_up()
        self._stop(timeout)
        self._give_up()
        return is_written

    def _queue_up(self, request: RequestMetrics) -> None:
        with self._guard:
            self._queue.append(request)
            is_full = len(self._queue) > self._settings.queue_requests
            if is_full:
                self._lose([self._queue.popleft()])
        if is_full:
            self.tell("full", "too many requests wait for the database: the oldest are lost")

    def _give_up(self) -> None:
        """Lose all that waits."""
        with self._guard:
            unwritten, self._unwritten = self._unwritten, None
            self._lose([*(unwritten.requests if unwritten else ()), *self._queue])
            self._queue.clear()

    def _lose(self, requests: Sequence[RequestMetrics]) -> None:
        self.dropped += len(requests)
        self._lost += replace(tally(requests), lost=len(requests))

    def _round(self) -> None:
        """Write all that waits, unless it was tried in vain a moment ago."""
        if self.is_lost or time.monotonic() < self._retry_at:
            return
        try:
            for _ in range(2):  # what was tried in vain, and what has come since
                if (batch := self._next()) is None:
                    break
                self._delivery.deliver(batch)
                self._unwritten = None
                self._beat_at = time.monotonic()
            if time.monotonic() - self._beat_at >= self._settings.heartbeat_seconds:
                self._delivery.beat()
                self._beat_at = time.monotonic()
            self._succeeded()
        except SessionGoneError as exc:
            self.is_lost = True
            self.tell("gone", exc.message)
            self._give_up()
        except Exception as exc:  # noqa: BLE001 - the thread lives as long as the engine
            self._failed(exc)

    def _next(self) -> Batch | None:
        """The batch to write: the one that was tried, as it was, or what is in the queue."""
        if self._unwritten is None:
            with self._guard:
                taken, self._queue = self._queue, deque()
                lost, self._lost = self._lost, Tally()
            if taken or lost.requests:
                self._number += 1
                counted = tally(taken) + lost
                self._unwritten = Batch(number=self._number, requests=taken, tally=counted)
        return self._unwritten
