"""A server that says nothing any more is hung up on: frozen, it would be waited for without end."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from arc_halo.errors import ConnectionFailedError
from arc_halo.store.rows import Connection, Pool

TRANSACTION_SECONDS = 300.0
"""What a transaction may take where nobody tells how far it is: it may wait for its lock, and then
write or delete gigabytes."""


@contextmanager
def patient(pool: Pool) -> Iterator[Connection]:
    """A connection of a pool, for a transaction that is long, and waits for no server that hangs.

    Raises `ConnectionFailedError`.
    """
    with pool.connection() as conn, hung_up_after(conn, TRANSACTION_SECONDS):
        yield conn


@contextmanager
def hung_up_after(
    conn: Connection, seconds: float, progress: Callable[[], int] = int
) -> Iterator[None]:
    """Let a connection wait for so many seconds, or on as long as `progress` is another number
    each time.

    One that was hung up on is closed, so that no pool keeps it. Raises `ConnectionFailedError`.
    """
    is_done = threading.Event()
    lock = threading.Lock()
    told: list[str] = []

    def watch() -> None:
        before = progress()
        while not is_done.wait(seconds):
            if (now := progress()) == before:
                break
            before = now
        with lock:  # a connection that went back is another's
            if not is_done.is_set():
                told.append(f"the database did not answer for {seconds:g} s")
                hang_up(conn)

    with suppress(RuntimeError):  # some Pythons start no thread while they end
        threading.Thread(target=watch, name="arc-halo-silence", daemon=True).start()
    try:
        yield
    except psycopg.Error as exc:
        if told:
            raise ConnectionFailedError(told[0], hint="look whether its server hangs") from exc
        raise
    finally:
        with lock:
            is_done.set()
        if told:
            conn.close()


def hang_up(conn: Connection) -> None:
    """End both directions of the line: whoever waits for it is told at once, in any thread."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(conn.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
