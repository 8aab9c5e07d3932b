"""What is new in a KV cache goes to the database by a thread of its own; engines never wait."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import fields

from arc_halo.errors import ArcHaloError
from arc_halo.inference.storing import OVER_BUDGET, OVER_QUOTA, UNLINKED, BlockStore, Write
from arc_halo.store.kv_cache import Counts

logger = logging.getLogger("arc_halo.inference")

IDLE_SECONDS = 1.0
"""How long uses and counts wait for more of them."""

FULL = "too much waits to be written already"
CLOSED = "the cache is closed"
FORKED = "this process was forked from the one that opened the cache: open one in each worker"
ONCE = frozenset({FULL, CLOSED, FORKED, OVER_BUDGET, OVER_QUOTA, UNLINKED})
"""What is told once, however often something is written between."""


class KVWriter:
    """The thread, and what waits for it."""

    def __init__(self, blocks: BlockStore, queue_bytes: int) -> None:
        self._blocks = blocks
        self._queue_bytes = queue_bytes
        self._writes: deque[Write] = deque()
        self._waiting_bytes = 0
        self._used: dict[bytes, int] = {}
        self._damaged: set[bytes] = set()
        self._counts = Counts()
        self._state = threading.Condition()
        self._wanted = self._done = 0
        self._failures = self._told_failures = 0
        self._is_closing = False
        self._pid = os.getpid()
        self._told: set[str] = set()
        self._thread: threading.Thread | None = None

    def put(self, write: Write) -> bool:
        """Queue a write; False where too much waits already, after the end, and in a process that
        was forked, where the thread is not. However large it is, one may wait alone."""
        if self.is_forked():
            return False
        with self._state:
            waiting = self._waiting_bytes
            has_place = not waiting or waiting + write.size_bytes <= self._queue_bytes
            if self._is_closing or not has_place:
                self._tell(CLOSED if self._is_closing else FULL)
                self._counts.refused_blocks += sum(len(chain.cuts) for chain in write.chains)
                return False
            self._writes.append(write)
            self._waiting_bytes += write.size_bytes
            self._wake()
            return True

    def used(self, keys: Iterable[bytes], damaged: Iterable[bytes], counts: Counts) -> None:
        """Say that blocks were used, that others were no good, and what else happened."""
        if self.is_forked():
            return
        with self._state:
            for key in keys:
                self._used[key] = self._used.get(key, 0) + 1
            self._damaged.update(damaged)
            _add(self._counts, counts)
            self._wake()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all of it is in the database; False where some of what came since the last
        time is not."""
        if self.is_forked():
            return False
        with self._state:
            self._wanted += 1
            wanted, told = self._wanted, self._told_failures
            self._wake()
            is_done = self._state.wait_for(
                lambda: self._done >= wanted or self._is_closing, timeout
            )
            is_kept = self._done >= wanted and self._failures == told
            self._told_failures = self._failures
            return is_done and is_kept

    def close(self, timeout: float | None) -> None:
        """Write what waits and end the thread."""
        if self.is_forked():
            return
        with self._state:
            self._is_closing = True
            if self._thread is None:
                return
            self._state.notify_all()
        self._thread.join(timeout)

    def is_forked(self) -> bool:
        """Whether this is a copy in another process, with neither thread nor connections."""
        if os.getpid() == self._pid:
            return False
        self._tell(FORKED)
        return True

    def _start(self) -> None:
        if self._thread is None and not self._is_closing:
            self._thread = threading.Thread(
                target=self._work, name="arc-halo-kv-cache", daemon=True
            )
            self._thread.start()

    def _wake(self) -> None:
        self._start()
        self._state.notify_all()

    def _wait(self) -> None:
        """Until there is something to do; for what is not urgent, until some of it is together."""
        self._state.wait_for(
            lambda: (
                self._is_urgent() or bool(self._used or self._damaged) or self._counts != Counts()
            )
        )
        self._state.wait_for(self._is_urgent, IDLE_SECONDS)

    def _is_urgent(self) -> bool:
        return bool(self._writes) or self._is_closing or self._wanted > self._done

    def _work(self) -> None:
        while True:
            with self._state:
                self._wait()
                write = self._writes.popleft() if self._writes else None
                used, self._used = self._used, {}
                damaged, self._damaged = self._damaged, set()
                counts, self._counts = self._counts, Counts()
                is_last = not self._writes
                wanted, is_closing = self._wanted, self._is_closing
            is_written = self._write(write, used, damaged, counts)
            with self._state:
                self._failures += not is_written
                if write is not None:
                    self._waiting_bytes -= write.size_bytes
                write = None  # its arrays go now, and not with the next
                if is_last:
                    self._done = wanted
                    self._state.notify_all()
                    if is_closing:
                        return

    def _write(
        self, write: Write | None, used: dict[bytes, int], damaged: set[bytes], counts: Counts
    ) -> bool:
        try:
            if damaged:
                self._blocks.delete(damaged)
            if used:
                self._blocks.use(used, counts)
            refusal = self._blocks.store(write, counts) if write is not None else ""
            self._blocks.sweep()
            if counts != Counts():
                self._blocks.count(counts)
        except ArcHaloError as exc:  # a cache: what could not be kept is computed again
            with self._state:
                _add(self._counts, counts)
            self._tell(exc.message)
            return False
        except Exception as exc:  # the thread lives as long as the engine
            with self._state:
                _add(self._counts, counts)
            logger.exception("keys and values were not kept: %s", type(exc).__name__)
            return False
        self._told &= ONCE
        if refusal:
            self._tell(refusal)
        return not refusal

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            # That a beginning went meanwhile is how caches are.
            level = logging.INFO if message == UNLINKED else logging.WARNING
            logger.log(level, "keys and values were not kept: %s", message)


def _add(to: Counts, more: Counts) -> None:
    for each in fields(Counts):
        setattr(to, each.name, getattr(to, each.name) + getattr(more, each.name))
