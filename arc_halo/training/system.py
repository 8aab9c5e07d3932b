"""What the machine is measured by while a session trains on it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from arc_halo.errors import ArcHaloError

Reading = Mapping[str, float]


class SystemMetrics:
    """A thread that measures the machine and this process every `seconds`, for `log`.

    `log` gets the whole seconds since `started_at` (since 1970) as the step, so that the series of
    a session that was taken up go on. Raises `ArcHaloError` where psutil is not installed.
    """

    def __init__(
        self, log: Callable[[Reading, int], None], *, seconds: float, started_at: float
    ) -> None:
        self._log = log
        self._seconds = seconds
        self._started_at = started_at
        self._read = reader()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="arc-halo-system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_over.wait(self._seconds):
            self._log(self._read(), max(0, int(time.time() - self._started_at)))


def reader() -> Callable[[], Reading]:
    """What reads the machine: percent of its CPUs (and of one CPU, for this process) since the last
    time, bytes of memory, and bytes free where the program runs. Raises `ArcHaloError`."""
    try:
        import psutil
    except ImportError as exc:
        raise ArcHaloError(
            "psutil is not installed", hint="pip install 'arc-halo[system]'", code="AH030"
        ) from exc
    process, directory = psutil.Process(), os.curdir
    psutil.cpu_percent()
    process.cpu_percent()

    def read() -> Reading:
        memory = psutil.virtual_memory()
        with process.oneshot():
            found = {
                "cpu_percent": psutil.cpu_percent(),
                "memory_percent": memory.percent,
                "memory_available_bytes": memory.available,
                "process_cpu_percent": process.cpu_percent(),
                "process_memory_bytes": process.memory_info().rss,
                "process_threads": process.num_threads(),
            }
        with suppress(OSError):  # a directory may be deleted while a program is in it
            found["disk_free_bytes"] = psutil.disk_usage(directory).free
        return found

    return read
