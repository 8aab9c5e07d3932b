"""A thread that writes in rounds what others queue, who wait for nothing and hear of no error."""

from __future__ import annotations

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from queue import Empty, SimpleQueue

from arc_halo.errors import ArcHaloError

MAX_PAUSE_SECONDS = 30.0
RETRY_SECONDS = 0.1
"""Between two tries that somebody waits for."""


class Rounds(ABC):
    """Has a `_round` every `seconds`, when `flush` asks for one, and until the end.

    A round that fails calls `_failed`, and the next tries pause ever longer; one that does not
    calls `_succeeded`. `waiting` says in a warning what becomes of things meanwhile.
    """

    def __init__(self, name: str, seconds: float, waiting: str, logger: logging.Logger) -> None:
        self.is_lost = False
        """Whether there is nothing any more that could be written to."""
        self._seconds = seconds
        self._waiting = waiting
        self._logger = logger
        self._told: set[str] = set()
        self._wake: SimpleQueue[None] = SimpleQueue()
        """Whose `put` may be interrupted by a signal whose handler logs too; an Event's may not."""
        self._idle = threading.Condition()
        self._rounds_wanted = self._rounds_done = 0
        self._is_closing = self._is_over = False
        self._failures = 0
        self._away_since = self._retry_at = 0.0
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    @property
    def is_forked(self) -> bool:
        """Whether this is a copy in a forked process, where the thread is not."""
        return self._pid != os.getpid()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait for a round that does not fail, for `timeout` seconds; without one, for one try.

        False where it was in vain.
        """
        # The thread is in the other process, and so may be who has the lock.
        if self.is_forked:
            return False
        if timeout is None:
            return self._had_round(None)
        until = time.monotonic() + timeout
        while not self._had_round(max(0.0, until - time.monotonic())):
            if self.is_lost or self._is_over or time.monotonic() + RETRY_SECONDS > until:
                return False
            time.sleep(RETRY_SECONDS)
        return True

    def tell(self, about: str, message: str) -> None:
        """Warn of a thing once."""
        if about not in self._told:
            self._told.add(about)
            self._logger.warning("%s", message)

    @abstractmethod
    def _round(self) -> None:
        """Write all that waits. What it raises ends the thread."""

    def _has_more(self) -> bool:
        """Whether another round has to come before the end."""
        return False

    def _had_round(self, timeout: float | None) -> bool:
        """Whether a whole round was had by then, and did not fail."""
        if self.is_lost:
            return False
        with self._idle:
            self._rounds_wanted += 1
            wanted = self._rounds_wanted
            self._retry_at = 0.0
            self._wake.put(None)
            self._idle.wait_for(lambda: self._is_over or self._rounds_done >= wanted, timeout)
            is_done = self._rounds_done >= wanted or (self._is_over and not self._has_more())
            return is_done and not self._failures and not self.is_lost

    def _stop(self, timeout: float | None) -> None:
        """End the thread when its round is over."""
        self._is_closing = True
        self._wake.put(None)
        self._thread.join(timeout)

    def _failed(self, error: Exception) -> None:
        """Let the next try wait; of the first in a row that failed it is told."""
        now = time.monotonic()
        if self._failures == 0:
            self._away_since = now
        self._failures += 1
        # As long as it has lasted, however often somebody made it try.
        pause = max(self._seconds * 2, now - self._away_since)
        self._retry_at = now + min(MAX_PAUSE_SECONDS, pause)
        if self._failures == 1 and not self._is_closing:
            said = error.message if isinstance(error, ArcHaloError) else type(error).__name__
            self._logger.warning("%s: %s", self._waiting, said)

    def _succeeded(self) -> None:
        if self._failures:
            self._logger.warning("the database answers again")
        self._failures = 0

    def _work(self) -> None:
        try:
            while not self._is_closing or self._has_more():
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
            # Half of it, so that what was queued is written, too, when all of it has passed.
            self._wake.get(timeout=self._seconds / 2)
            while True:
                self._wake.get_nowait()
