"""What `session.record` does: requests queued at once, and written by a thread of their own."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from arc_halo.errors import ArcHaloError, InvalidInputError
from arc_halo.inference.delivering import Delivery, SessionGoneError
from arc_halo.inference.metrics import Batch, request_metrics, tally
from arc_halo.store.inference_metrics import RequestMetrics
from arc_halo.store.inference_sessions import Tally

logger = logging.getLogger("arc_halo.inference")

MAX_PAUSE_SECONDS = 30.0
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
    for name, seconds, most in (
        ("flush_seconds", flush_seconds, MAX_FLUSH_SECONDS),
        ("heartbeat_seconds", heartbeat_seconds, MAX_HEARTBEAT_SECONDS),
    ):
        if not 0 < seconds <= most:
            raise InvalidInputError(
                f"{name}={seconds!r}: write more than 0 and at most {most:.0f}", code="AH007"
            )
    if queue_requests < 1:
        raise InvalidInputError(
            f"queue_requests={queue_requests!r}: write a whole number from 1", code="AH007"
        )
    return RecordSettings(
        flush_seconds=flush_seconds,
        heartbeat_seconds=heartbeat_seconds,
        queue_requests=queue_requests,
    )


class RequestLog:
    """A queue of requests and the thread that empties it. `put` neither blocks nor raises.

    While the database is away requests wait in memory. Where there are too many the oldest are
    lost: they are counted still, but what they took is not kept.
    """

    def __init__(self, delivery: Delivery, settings: RecordSettings) -> None:
        self._delivery = delivery
        self._settings = settings
        self._guard = threading.RLock()
        """Of what follows; held for a moment. A signal's handler may record, too."""
        self._queue: deque[RequestMetrics] = deque()
        self._lost = Tally()
        self._unwritten: Batch | None = None
        """What the thread is writing, until it is known to be written."""
        self._number = 0
        self._told: set[str] = set()
        self._wake: SimpleQueue[None] = SimpleQueue()
        """Whose `put` may be interrupted by a signal whose handler records; an Event's may not."""
        self._idle = threading.Condition()
        self._rounds_wanted = self._rounds_done = 0
        self._is_closing = self._is_over = self._is_gone = False
        self._failures, self._retry_at, self._beat_at = 0, 0.0, time.monotonic()
        self._pid = os.getpid()
        self.dropped = 0
        """How many requests' metrics are lost."""
        self._thread = threading.Thread(target=self._work, name="arc-halo-requests", daemon=True)
        self._thread.start()

    @property
    def is_forked(self) -> bool:
        """Whether this is a copy in a forked process, where the thread is not."""
        return self._pid != os.getpid()

    def put(self, **given: Any) -> None:
        """Queue a request. What makes no sense is left out, with a warning the first time."""
        if self.is_forked:
            self.tell("fork", "requests that a forked process answers are not recorded")
            return
        if self._is_gone:
            self.dropped += 1
            return
        try:
            request = request_metrics(recorded_at=time.time(), complain=self.tell, **given)
            if request is not None:
                self._queue_up(request)
        except Exception as exc:  # noqa: BLE001 - recording must not end a request
            self.tell("put", f"requests were not recorded: {type(exc).__name__}: {exc}")

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was put is written; False where it waits still."""
        if self.is_forked:  # the thread is in the other process, and so may be who has the lock
            return False
        with self._idle:
            self._rounds_wanted += 1
            wanted = self._rounds_wanted
            self._retry_at = 0.0
            self._wake.put(None)
            self._idle.wait_for(lambda: self._is_over or self._rounds_done >= wanted, timeout)
            is_done = self._rounds_done >= wanted or (self._is_over and not self._is_waiting)
            return is_done and not self._failures and not self._is_gone

    def close(self, timeout: float | None = None) -> bool:
        """Write what waits and end the thread; False where some is lost."""
        is_written = self.flush(timeout)
        self._is_closing = True
        self._wake.put(None)
        self._thread.join(timeout)
        self._give_up()
        if self.dropped:
            logger.warning("what %d requests took may not be recorded", self.dropped)
        return is_written

    def tell(self, about: str, message: str) -> None:
        """Warn of a thing once."""
        if about not in self._told:
            self._told.add(about)
            logger.warning("%s", message)

    @property
    def _is_waiting(self) -> bool:
        return bool(self._queue) or self._unwritten is not None

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

    def _work(self) -> None:
        try:
            while not self._is_closing:
                self._rest()
                with self._idle:
                    wanted = self._rounds_wanted
                self._round()
                with self._idle:
                    self._rounds_done = wanted
                    self._idle.notify_all()
        finally:  # whoever waits for it waits no longer
            with self._idle:
                self._is_over = True
                self._idle.notify_all()

    def _rest(self) -> None:
        """Wait for the next round, or until somebody asks for one."""
        with suppress(Empty):
            # Half of it, so that what was recorded is written, too, when all of it has passed.
            self._wake.get(timeout=self._settings.flush_seconds / 2)
            while True:
                self._wake.get_nowait()

    def _round(self) -> None:
        """Write all that waits, unless it was tried in vain a moment ago."""
        if self._is_gone or time.monotonic() < self._retry_at:
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
            self._failures = 0
        except SessionGoneError as exc:
            self._is_gone = True
            self.tell("gone", exc.message)
            self._give_up()
        except Exception as exc:  # noqa: BLE001 - the thread lives as long as the engine
            self._failures += 1
            pause = min(MAX_PAUSE_SECONDS, self._settings.flush_seconds * 2.0**self._failures)
            self._retry_at = time.monotonic() + pause
            said = exc.message if isinstance(exc, ArcHaloError) else type(exc).__name__
            logger.warning("requests wait in memory: %s", said)

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
