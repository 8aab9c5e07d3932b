"""Where the tensor store is measured: an embedded server, databases in it, its seconds and memory.

Seconds are CPU seconds, user and system. The server's are those of all its processes, the ones
that have ended meanwhile too. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from rows import Row
from server_cpu import SETTLED_SECONDS as SETTLED_SECONDS
from server_cpu import charged as charged
from server_cpu import children as children
from server_cpu import server_seconds as server_seconds

from arc_halo import embedded
from arc_halo.store import migrate
from arc_halo.store.connection import connect


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a measured part took, in CPU seconds, and what else its probe had to say."""

    client: float
    server: float
    said: Mapping[str, Any]

    @property
    def cpu(self) -> float:
        return self.client + self.server


Alternative = Callable[[], Cost]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A directory for files, and a running server of its own."""

    directory: Path
    postmaster: int
    url: str

    def create_database(self, name: str) -> str:
        """A new, migrated database; its address."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = make_conninfo(self.url, dbname=name)
        with connect(url) as migrated:
            migrate.up(migrated)
        return url

    def drop_database(self, name: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            conn.execute("CHECKPOINT")

    def probe(self, name: str, **arguments: object) -> Cost:
        """What the probe `name` of `tensor_probes.py` measures in a fresh process."""
        with self.probing(name, **arguments) as process:
            said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"the probe {name} exited with {process.returncode}")
        found = json.loads(said)
        return Cost(client=found.pop("client"), server=found.pop("server"), said=found)

    @contextmanager
    def probing(self, name: str, **arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """The process of a probe; it is ended where it has not ended by itself."""
        probes = Path(__file__).with_name("tensor_probes.py")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        given = json.dumps({**arguments, "postmaster": self.postmaster}, default=str)
        process = subprocess.Popen(
            [sys.executable, "-P", str(probes), name, given],
            env={
                **os.environ,
                **environment,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            stdout=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    """A server in `directory`, without what would fall on one side or the other.

    That is autovacuum, and the making of new WAL segments, of which all are used again.
    """
    status = embedded.start(directory)
    try:
        assert status.pid is not None
        with psycopg.connect(status.url, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET autovacuum = off")
            conn.execute("ALTER SYSTEM SET min_wal_size = '2GB'")
            conn.execute("SELECT pg_reload_conf()")
        yield Site(directory=directory, postmaster=status.pid, url=status.url)
    finally:
        embedded.stop(directory, force=True)


def empty(url: str) -> None:
    """Leave nothing in the tables, and no work behind for the server."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("TRUNCATE chunk_bodies, tensor_metadata, weight_sets, weight_builds CASCADE")
        conn.execute("CHECKPOINT")


def interleaved(
    alternatives: Mapping[str, Alternative],
    repetitions: int,
    *,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[Cost]]:
    """The costs of each alternative, taken in turns, the first one of a turn another each time.

    A turn before the first warms the server and the page cache, and is not counted.
    """
    names = list(alternatives)
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for repetition in range(-1, repetitions):
        start = repetition % len(names)
        for name in names[start:] + names[:start]:
            before()
            cost = alternatives[name]()
            if repetition >= 0:
                costs[name].append(cost)
    return costs


def ratio_row(
    what: str, costs: Mapping[str, Sequence[Cost]], above: str, below: str, bar: float, op: str
) -> Row:
    """The median, over repetitions, of `above`'s CPU over `below`'s in the same one."""
    pairs = zip(costs[above], costs[below], strict=True)
    ratios = [over.cpu / under.cpu for over, under in pairs]
    ratio = median(ratios)
    of = f"({seconds(costs[above])} / {seconds(costs[below])})"
    return Row(
        what=what,
        figure=f"{ratio:.2f}  {min(ratios):.2f}-{max(ratios):.2f}  {of}",
        bar=f"{op} {bar:g}",
        is_met=ratio >= bar if op == ">=" else ratio <= bar,
    )


def seconds(costs: Sequence[Cost]) -> str:
    """The medians of the client's and the server's seconds, as `0.42+1.10`."""
    return f"{median(c.client for c in costs):.2f}+{median(c.server for c in costs):.2f}"


def anonymous_mib(pid: int) -> float:
    """The resident anonymous memory of a process; none once it has ended."""
    return _status_mib(pid, "RssAnon")


def resident_mib(pid: int | str = "self") -> float:
    return _status_mib(pid, "VmRSS")


def peak_resident_mib(pid: int | str = "self") -> float:
    return _status_mib(pid, "VmHWM")


def _status_mib(pid: int | str, name: str) -> float:
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return 0.0
