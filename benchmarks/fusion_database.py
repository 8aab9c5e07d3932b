"""A merge from the database to the database, as `fusion.py` measures it: client and server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from tensor_site import SETTLED_SECONDS, server_seconds, site

PROGRAM = shutil.which("arc-halo") or "arc-halo"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseRun:
    """CPU seconds of a merge, of the server too; and of reading and writing the same bodies bare.

    Bare is without starting up, without digests, and without a merge.
    """

    ours: float
    bare: float


def database_run(directory: Path, models: Path, members: Sequence[str]) -> DatabaseRun:
    """An apply that merges imported members linearly."""
    from fusion import timed

    project = directory / "project"
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir()
    (directory / "site").mkdir(exist_ok=True)
    with site(directory / "site") as found:
        url = found.create_database("merging")
        write(project, models, members, merges=False)
        apply(project, url, models)
        write(project, models, members, merges=True)
        time.sleep(SETTLED_SECONDS)
        before = server_seconds(found.postmaster)
        run = timed(command(project, url, models), directory)
        time.sleep(SETTLED_SECONDS)
        ours = run.cpu_seconds + server_seconds(found.postmaster) - before
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("CHECKPOINT")
        bare = found.probe("bare_merge", url=url, members=len(members))
        return DatabaseRun(ours=ours, bare=bare.cpu)


def write(project: Path, models: Path, members: Sequence[str], *, merges: bool) -> None:
    reactor = {
        "type": "merge",
        "strategy": "linear",
        "members": [{"model": name} for name in members],
        "produces": {"model": "out", "version": "1"},
    }
    manifest = {
        "version": 1,
        "project": "bench",
        "storage": {"codec": "raw"},
        "settings": {"threads": 1},
        "models": {
            f"{name}@1": {"type": "other", "weights": str(models / name)} for name in members
        },
        **({"reactors": {"r": reactor}} if merges else {}),
    }
    (project / "arc_halo.yaml").write_text(json.dumps(manifest))


def command(project: Path, url: str, models: Path) -> list[str]:
    shared = ["--project", str(project), "--database-url", url, "--allow-path", str(models)]
    return [PROGRAM, "apply", "--quiet", *shared]


def apply(project: Path, url: str, models: Path) -> None:
    subprocess.run(command(project, url, models), check=True, env={**os.environ})
