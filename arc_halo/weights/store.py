"""What the weights pipeline works with: connections, codecs, and its limits."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg

from arc_halo.errors import InvalidInputError, UnknownPluginError, WeightsError
from arc_halo.store.rows import Connection, Pool
from arc_halo.types import ChunkBodies, TensorCodec

BATCH_BYTES = 4 * 1024 * 1024
"""Raw bytes that a writer gathers before it asks the database which of them are new."""

AUTO = "auto"
"""Chosen for each chunk: whatever makes it smallest of what its dtype gives reason to try."""

DELTA = "delta"

CANCEL_SECONDS = 5.0

Advance = Callable[[int], None]
"""Told how many raw bytes were just dealt with; called from several threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBodies:
    """The open body store of a project, and the catalogue's number for it."""

    store_id: int
    bodies: ChunkBodies


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightStore:
    """The tensors of one database, for reading and writing.

    Memory held while streaming stays below `memory_bytes`, whatever the model's size. New bodies
    go to `bodies`, or into the database where there is none.
    """

    pool: Pool
    codecs: Mapping[str, TensorCodec]
    codec: str | None = None
    chunk_bytes: int = 262144
    memory_bytes: int = 256 * 1024 * 1024
    threads: int = 2
    bodies: OpenBodies | None = None

    @property
    def batch_bytes(self) -> int:
        """Raw bytes a thread may gather: raw, base, encoded and in flight, it holds four."""
        share = self.memory_bytes // (self.threads * 4)
        return max(1, min(BATCH_BYTES, share) // self.chunk_bytes) * self.chunk_bytes

    def find_codec(self, name: str) -> TensorCodec:
        try:
            return self.codecs[name]
        except KeyError:
            raise UnknownPluginError(
                f"no loaded plugin provides the tensor codec {name!r}",
                hint="install the package that wrote these tensors, or list its file in `plugins:`",
            ) from None


def check_needs_base(codec: TensorCodec, has_base: bool) -> None:
    """Refuse a codec that takes deltas where there is nothing to take them against."""
    if codec.needs_base and not has_base:
        raise InvalidInputError(
            f"the codec {codec.name!r} keeps deltas, and no model is named to take them against",
            hint="name one: `--delta-from MODEL`, or `weights.delta_from`",
            code="AH023",
        )


class Cancellation:
    """Lets the threads of a pipeline stop early when one of them fails or the user interrupts."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._watched: set[Connection] = set()
        self.cause: BaseException | None = None

    def cancel(self) -> None:
        """Have every thread stop at its next step, and what it waits for in the server end.

        A server that does not answer is left: the threads then find their connections closed.
        """
        self._event.set()
        is_there = True
        with self._lock:  # a connection given back meanwhile may be somebody else's
            for conn in self._watched:
                is_there = is_there and _asked_to_stop(conn)
                if not is_there:
                    _hang_up(conn)

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
            with self._lock:
                self.cause = self.cause or exc
            self._event.set()
            raise

    @contextmanager
    def watch(self, conn: Connection) -> Iterator[None]:
        """Have cancelling end the statement that `conn` runs inside."""
        with self._lock:
            self._watched.add(conn)
        try:
            yield
        finally:
            with self._lock:
                self._watched.discard(conn)


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


def no_progress(size_bytes: int) -> None:
    """An `Advance` that tells nobody."""
