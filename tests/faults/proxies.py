"""A TCP proxy that breaks its connections the way networks do."""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Literal, Self

How = Literal["close", "reset", "black hole"]
Direction = Literal["up", "down"]

SO_ATTACH_FILTER = 26


class Proxy:
    """Passes bytes on to a server on loopback until, of one connection, `after` bytes have gone.

    Then that connection ends: closed, reset, or turned into a black hole, in which nothing is
    answered any more, not even by the kernel. `broken` is set when it has happened. Connections
    that come later pass, unless `for_all` is set. `pause_seconds` slows down every 4 KiB.
    """

    def __init__(
        self,
        port: int,
        *,
        how: How = "close",
        direction: Direction = "up",
        after: int | None = None,
        for_all: bool = False,
        pause_seconds: float = 0.0,
    ) -> None:
        self._target = ("127.0.0.1", port)
        self._how = how
        self._direction = direction
        self._after = after
        self._for_all = for_all
        self._pause_seconds = pause_seconds
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.passed = {"up": 0, "down": 0}
        self.broken = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for each in self._sockets:
                each.close()
        self._thread.join()

    def break_all(self) -> None:
        """Do to every open connection what is done to the first one."""
        with self._lock:
            pairs = list(zip(self._sockets[::2], self._sockets[1::2], strict=True))
        for client, server in pairs:
            self._break(client, server)
        self.broken.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets += [client, server]
            if self.broken.is_set() and self._for_all:
                self._break(client, server)
                continue
            threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        # One thread for both directions: a socket that another thread reads cannot be reset.
        sinks = {client: ("up", server), server: ("down", client)}
        counts = {"up": 0, "down": 0}
        try:
            while True:
                for source in select.select(list(sinks), [], [])[0]:
                    direction, sink = sinks[source]
                    data = source.recv(4096)
                    counts[direction] += len(data)
                    self.passed[direction] += len(data)
                    if self._is_due(direction, counts[direction]):
                        self._break(client, server)
                        return
                    if not data:
                        self._end(client, server)
                        return
                    time.sleep(self._pause_seconds)
                    sink.sendall(data)
        except (OSError, ValueError):  # broken, or closed at the end
            return

    def _is_due(self, direction: str, count: int) -> bool:
        if self._after is None or direction != self._direction or count < self._after:
            return False
        with self._lock:
            if self.broken.is_set() and not self._for_all:
                return False
            self.broken.set()
        return True

    def _break(self, client: socket.socket, server: socket.socket) -> None:
        for each in (client, server):
            with suppress(OSError):
                if self._how == "black hole":
                    drop_all(each)
                elif self._how == "reset":
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self._how != "black hole":
            self._end(client, server)

    def _end(self, *sockets: socket.socket) -> None:
        for each in sockets:
            each.close()


def drop_all(sock: socket.socket) -> None:
    """Have the kernel drop whatever comes in for `sock`: no data, no acknowledgement, no probe."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # return 0 bytes
    pointer = struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)
