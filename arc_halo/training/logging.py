"""What `run.log` does: points queued at once, and written by a thread in the background."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arc_halo.errors import TrainingError
from arc_halo.names import is_storable
from arc_halo.store.rounds import Rounds
from arc_halo.training.delivering import Delivery, LeaseLostError
from arc_halo.training.points import SYSTEM, Batch, Logged
from arc_halo.training.spool import Spool

logger = logging.getLogger("arc_halo.training")

MAX_NAME_BYTES = 1200
"""Of a metric's name, or a scope's: both together fit into an index."""

MAX_EPOCH = 1e9
BATCH_POINTS = 100_000
"""Points written in one transaction at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """How often points are written, or a sign of life is given, and how many points may wait.

    Every `system_seconds` the machine is measured too.
    """

    flush_seconds: float = 1.0
    heartbeat_seconds: float = 10.0
    queue_points: int = 200_000
    spool_bytes: int = 1024**3
    system_seconds: float | None = None


class PointLog(Rounds):
    """A queue of points and the thread that empties it. `put` neither blocks nor raises.

    While the database is away, points go to the spool; they are written, in their order, when it
    is back. A full queue is written to the spool by whoever fills it.
    """

    def __init__(self, delivery: Delivery, spool: Spool, settings: LogSettings) -> None:
        super().__init__(
            "arc-halo-points", settings.flush_seconds, "points wait on the local disk", logger
        )
        self.dropped = 0
        self._delivery = delivery
        self._spool = spool
        self._settings = settings
        self._queue: deque[Logged] = deque()
        self._known_names: set[str] = set()
        self._taking = threading.Lock()
        self._in_flight: list[Logged] = []
        """What the thread is writing, unless it is on the disk already."""
        self._beat_at = time.monotonic()
        self._step: int | None = None
        self._epoch: float | None = None
        self._thread.start()

    def put(self, metrics: Mapping[str, Any], step: int, epoch: float | None, scope: str) -> None:
        """Queue the points of a step. What is no number is left out, with a warning the first
        time."""
        if self.is_forked:
            self.tell("fork", "points logged by a forked process are not recorded")
            return
        try:
            self._queue.extend(self._logged(metrics, step, epoch, scope))
        except Exception as exc:  # noqa: BLE001 - logging must not end a training
            self.tell("log", f"points were not recorded: {type(exc).__name__}: {exc}")
            return
        if len(self._queue) >= self._settings.queue_points:
            if self._wake.empty():
                self._wake.put(None)
            self._relieve()

    def close(self, timeout: float | None = None) -> bool:
        """Write what waits and end the thread; False where some is left in the spool."""
        is_written = self.flush(timeout)
        self._stop(timeout)
        if self.dropped:
            logger.warning("%d points were not recorded", self.dropped)
        self._spool.close()
        return is_written

    def _logged(
        self, metrics: Mapping[str, Any], step: int, epoch: float | None, scope: str
    ) -> list[Logged]:
        found: list[Logged] = []
        if scope not in self._known_names and not self._is_name(scope, "scope"):
            return found
        now = time.time()
        at = math.nan if epoch is None else self._epoch_of(epoch)
        for key, value in metrics.items():
            if key not in self._known_names and not self._is_name(key, "metric"):
                continue
            try:
                number = float(value)
            except Exception as exc:  # noqa: BLE001 - a value may be anything, and raise anything
                self.tell(key, f"{key}: not recorded, since it is no number: {exc}")
                continue
            found.append((key, scope, step, at, number, now))
        return found

    def _is_name(self, name: Any, of: str) -> bool:
        is_text = isinstance(name, str) and name != "" and is_storable(name)
        if is_text and len(name.encode()) <= MAX_NAME_BYTES:
            self._known_names.add(name)
            return True
        self.tell(repr(name)[:80], f"{str(name)[:80]!r} is no name of a {of}: not recorded")
        return False

    def _epoch_of(self, epoch: Any) -> float:
        """An epoch as a number, NaN for what can be none."""
        number = float(epoch)
        if 0 <= number < MAX_EPOCH:
            return number
        self.tell("epoch", f"epoch={number}: points are recorded without it")
        return math.nan

    def _relieve(self) -> None:
        """Empty the queue to the disk, unless somebody else is at it: the thread is too slow."""
        if self._taking.acquire(blocking=False):
            try:
                if len(self._queue) >= self._settings.queue_points:
                    # What is older first: a program that is killed leaves no gap.
                    self._keep_in_flight()
                    self._keep(self._take(self._settings.queue_points))
            finally:
                self._taking.release()

    def _has_more(self) -> bool:
        return bool(self._queue)

    def _round(self) -> None:
        """Write all that waits, or keep it where it is safe until the next round."""
        while True:
            with self._taking:
                self._in_flight = logged = self._take(BATCH_POINTS)
            if self.is_lost:
                self.dropped += len(logged)
            elif self._failures:
                # Onto the disk before it is tried again, which may take long.
                with self._taking:
                    self._keep_in_flight()
                if time.monotonic() >= self._retry_at:
                    self._write([])
            else:
                self._write(logged)
            if not self._queue or self._failures:
                return

    def _write(self, logged: list[Logged]) -> None:
        try:
            self._replay()
            if logged or time.monotonic() - self._beat_at >= self._settings.heartbeat_seconds:
                self._deliver(Batch.of(logged))
            self._succeeded()
        except LeaseLostError as exc:
            self.is_lost = True
            self.dropped += len(logged)
            self.tell("lease", exc.message)
        except Exception as exc:  # noqa: BLE001 - the thread lives as long as the training
            self._failed(exc)
            with self._taking:
                self._keep_in_flight()

    def _replay(self) -> None:
        for path, batch in self._spool.batches():
            self._deliver(batch, is_late=True)
            self._spool.drop(path)

    def _deliver(self, batch: Batch, *, is_late: bool = False) -> None:
        self._delivery.deliver(batch, step=self._step, epoch=self._epoch, is_late=is_late)
        self._beat_at = time.monotonic()

    def _keep_in_flight(self) -> None:
        """Keep what the thread is writing, which takes long or went wrong, once."""
        in_flight, self._in_flight = self._in_flight, []
        self._keep(in_flight)

    def _keep(self, logged: list[Logged]) -> None:
        if not logged:
            return
        try:
            self._spool.put(Batch.of(logged))
        except TrainingError as exc:
            self.dropped += len(logged)
            self.tell("spool", exc.message)

    def _take(self, limit: int) -> list[Logged]:
        queue = self._queue
        taken: list[Logged] = []
        for _ in range(limit):
            try:
                taken.append(queue.popleft())
            except IndexError:  # empty, perhaps since another thread has just taken
                break
        for _, scope, step, epoch, _, _ in reversed(taken):
            if scope != SYSTEM:
                self._step = step
                self._epoch = self._epoch if math.isnan(epoch) else epoch
                break
        return taken
