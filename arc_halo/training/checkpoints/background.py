"""Work done in the background; what goes wrong comes out later, never not at all."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future

# Its own hook at the end must be there before ours: the last one comes first.
from concurrent.futures import thread as _executors  # noqa: F401
from threading import Thread
from typing import Any, Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")


class Pending(Generic[T]):
    """Work that is under way in a thread of its own.

    A program that ends waits for it: what was promised to be kept is kept.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        self._is_told = False
        _begun.add(self)
        Thread(target=self._run, args=[work], name="arc-halo checkpoint", daemon=False).start()

    @property
    def is_done(self) -> bool:
        return self._future.done()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is done, so many seconds at most; whether it is. Raises nothing."""
        try:
            self._future.exception(timeout)
        except TimeoutError:
            return False
        return True

    def result(self, timeout: float | None = None) -> T:
        """What came of it. Raises what the work raised, and `TimeoutError`."""
        if self.wait(timeout):
            self._is_told = True
        return self._future.result(0)

    def raise_untold(self) -> None:
        """Wait, and raise what the work raised, unless `result` has."""
        self.wait()
        if not self._is_told:
            self.result()

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._future.set_result(work())
        except BaseException as exc:  # noqa: BLE001  it is raised where somebody sees it
            self._future.set_exception(exc)


_begun: WeakSet[Pending[Any]] = WeakSet()


def _wait_for_all() -> None:
    for each in list(_begun):
        each.wait()


# What the work does may need threads. `atexit` comes when no more can be started, this before.
getattr(threading, "_register_atexit", atexit.register)(_wait_for_all)
