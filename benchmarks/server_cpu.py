"""The CPU seconds of a PostgreSQL server, told by the kernel. Nothing is imported that a peer's
Python may lack. Linux only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SETTLED_SECONDS = 0.3
"""The WAL writer has written what was committed asynchronously this soon after."""


@contextmanager
def charged(postmaster: int, *, writes: bool = True) -> Iterator[dict[str, Any]]:
    """Add up what runs inside: `client` of this process and `server`, in CPU seconds."""
    found: dict[str, Any] = {}
    server, client = server_seconds(postmaster), time.process_time()
    yield found
    found["client"] = time.process_time() - client
    if writes:
        time.sleep(SETTLED_SECONDS)
    found["server"] = server_seconds(postmaster) - server


def server_seconds(postmaster: int) -> float:
    """The CPU seconds of the server so far."""
    own = _fields(postmaster)[11:15]
    ticks = sum(map(int, own)) / os.sysconf("SC_CLK_TCK")
    return ticks + sum(map(_run_seconds, children(postmaster)))


def children(pid: int) -> list[int]:
    """The processes that `pid` has started."""
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()]


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _run_seconds(pid: int) -> float:
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    return 0.0
