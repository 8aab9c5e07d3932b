"""A corpus with a server of its own, and what commands take there: CPU seconds, and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus import write_corpus

from arc_halo import embedded

REAPED_SECONDS = 0.3
"""A backend is gone this soon after its client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one run of a command took: CPU and wall seconds, and its peak resident set."""

    client: float
    server: float
    wall: float
    peak_mb: float

    @property
    def cpu(self) -> float:
        return self.client + self.server


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A corpus with a running embedded server of its own."""

    directory: Path
    postmaster: int
    models: int
    reactors: int

    @property
    def size(self) -> int:
        return self.models + self.reactors

    def command(self, *args: str) -> Usage:
        """Run `arc-halo`, which must succeed."""
        before, started = self._server_seconds(), time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "arc_halo", *args, "--project", str(self.directory)],
            env=environment(),
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - started
        if process.returncode:
            raise SystemExit(f"arc-halo {' '.join(args)} exited with {process.returncode}")
        time.sleep(REAPED_SECONDS)
        return Usage(
            client=usage.ru_utime + usage.ru_stime,
            server=self._server_seconds() - before,
            wall=wall,
            peak_mb=usage.ru_maxrss * 1024 / 1e6,
        )

    def probe(self, name: str) -> dict[str, Any]:
        """What `probes.py` says."""
        probes = Path(__file__).with_name("probes.py")
        said = subprocess.run(
            [sys.executable, str(probes), name, str(self.directory)],
            env=environment(),
            stdout=subprocess.PIPE,
            check=True,
        )
        found: dict[str, Any] = json.loads(said.stdout)
        return found

    def _server_seconds(self) -> float:
        """The CPU seconds of the server's processes that have ended."""
        stat = Path(f"/proc/{self.postmaster}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[13:15]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def site(directory: Path, models: int, reactors: int, files: int) -> Iterator[Site]:
    """A new corpus in `directory`, its server running and migrated, nothing applied."""
    write_corpus(directory, models=models, reactors=reactors, files=files)
    status = embedded.start(directory)
    try:
        assert status.pid is not None
        found = Site(directory=directory, postmaster=status.pid, models=models, reactors=reactors)
        found.command("migrate", "up")
        yield found
    finally:
        embedded.stop(directory, force=True)


def environment() -> dict[str, str]:
    """Ours, without another database."""
    others = ("ARC_HALO_DATABASE_URL", "NEON_DATABASE_URL")
    return {name: value for name, value in os.environ.items() if name not in others}
