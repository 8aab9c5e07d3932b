"""Work in several threads that stop early together: when one fails, or the user interrupts."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TypeVar

import psycopg

from arc_halo.errors import WeightsError
from arc_halo.store.rows import Connection

CANCEL_SECONDS = 5.0
AGAIN_SECONDS = 0.5

T = TypeVar("T")
R = TypeVar("R")


def in_threads(
    threads: int, work: Callable[[T], R], items: Iterable[T], cancellation: Cancellation
) -> list[R]:
    """What `work` gives for each item, by so many threads. Raises the first failure.

    `work` runs inside `cancellation.guard()`, and of what waits nothing begins after a failure.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="arc-halo") as pool:
        return in_pool(pool, work, items, cancellation)


def in_pool(
    pool: Executor, work: Callable[[T], R], items: Iterable[T], cancellation: Cancellation
) -> list[R]:
    """The same by an open executor whose workers are threads of this process; it is shut down."""
    futures: list[Future[R]] = []
    is_finished = False
    try:
        # An interrupt may come here too, while the first ones run already.
        futures.extend(pool.submit(work, item) for item in items)
        wait(futures, return_when=FIRST_EXCEPTION)
        is_finished = all(future.done() for future in futures)
    finally:
        # On Ctrl-C too: what runs is stopped in the server as well, what waits never starts.
        pool.shutdown(wait=False, cancel_futures=True)
        if not is_finished:
            cancellation.cancel()
    if cancellation.cause is not None:
        raise cancellation.cause
    return [future.result() for future in futures]


class Cancellation:
    """Lets the threads of a pipeline stop early when one of them fails or the user interrupts."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._changed = threading.Condition()
        self._watched: set[Connection] = set()
        self.cause: BaseException | None = None

    def cancel(self) -> None:
        """Have every thread stop at its next step, and what it waits for in the server end.

        Asked again until all have stopped: a request that comes between two statements is lost. A
        server that does not answer is left: the threads then find their connections closed.
        """
        self._event.set()
        is_there = True
        with self._changed:  # a connection given back meanwhile may be somebody else's
            while self._watched:
                for conn in self._watched:
                    is_there = is_there and _asked_to_stop(conn)
                    if not is_there:
                        _hang_up(conn)
                self._changed.wait(AGAIN_SECONDS)

    def check(self) -> None:
        """Raise `WeightsError` once it is cancelled."""
        if self._event.is_set():
            raise WeightsError("stopped")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Cancel everything when what is inside fails; the first failure is the `cause`."""
        try:
            self.check()
            yield
        except BaseException as exc:
            with self._changed:
                self.cause = self.cause or exc
            self._event.set()
            raise

    @contextmanager
    def watch(self, conn: Connection) -> Iterator[None]:
        """Have cancelling end the statement that `conn` runs inside."""
        with self._changed:
            self._watched.add(conn)
        try:
            yield
        finally:
            with self._changed:
                self._watched.discard(conn)
                self._changed.notify_all()


def _asked_to_stop(conn: Connection) -> bool:
    try:
        conn.cancel_safe(timeout=CANCEL_SECONDS)
    except psycopg.Error:
        return False
    return True


def _hang_up(conn: Connection) -> None:
    """End the connection under a thread that waits for it in libpq."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
