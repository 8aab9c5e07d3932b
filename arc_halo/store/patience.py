"""A connection that a thread keeps: opened anew when it must be, and cut where nobody answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from arc_halo.errors import ConnectionFailedError
from arc_halo.store.connection import translate
from arc_halo.store.rows import Connection
from arc_halo.store.silence import hang_up

PATIENCE_SECONDS = 30.0


class PatientConnection:
    """A connection that is opened when it is first used, and again after an error.

    A server that does not answer within `patience_seconds` is given up.
    """

    def __init__(
        self, connect: Callable[[], Connection], *, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self.patience_seconds = patience_seconds
        self._connect = connect
        self._closing = threading.Lock()
        self._connection: Connection | None = None
        self._is_over = False

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    @contextmanager
    def guarded(self) -> Iterator[Connection]:
        """The connection, which is closed where the `with` ends in an error.

        Whether what was written then is committed is not known. Raises `DatabaseError`.
        """
        watch = threading.Timer(self.patience_seconds, self._cut)
        watch.daemon = True
        try:
            with translate():
                conn = self._opened()
                with suppress(RuntimeError):  # some Pythons start no thread while they end
                    watch.start()
                yield conn
        except BaseException:
            self.close()
            raise
        finally:
            watch.cancel()

    def close(self) -> None:
        with self._closing:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def end(self) -> None:
        """Close it for good, whoever waits for the server: they get an error."""
        self._is_over = True
        self._cut()

    def _opened(self) -> Connection:
        if self._connection is None:
            connection = self._connect()
            with self._closing:
                if self._is_over:
                    connection.close()
                    raise ConnectionFailedError("it took too long to connect to the database")
                self._connection = connection
        return self._connection

    def _cut(self) -> None:
        """Cut the connection, so that who waits for the server gets an error."""
        with self._closing, suppress(Exception):
            if self._connection is not None:
                # A lock that is waited for is waited for no longer.
                with suppress(Exception):
                    self._connection.cancel_safe(timeout=2)
                hang_up(self._connection)
