"""Which database a command works on, and how it comes to its address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arc_halo.cli.invocation import Invocation
from arc_halo.config import PROJECT_FILE, DatabaseTarget
from arc_halo.errors import UsageError


def target_of(invocation: Invocation) -> DatabaseTarget:
    """The database that the flag, the environment, `.env` and the manifest name together."""
    return invocation.open(needs_manifest=False).target


def embedded_directory(invocation: Invocation) -> Path:
    """The project whose embedded server is meant. Raises `UsageError` outside of a project."""
    if invocation.project_directory is None:
        raise UsageError(
            f"there is no {PROJECT_FILE} here, nor in a directory above",
            hint="run `arc-halo init` to begin a project, or name a database with --database-url",
        )
    return invocation.project_directory


@contextmanager
def database_url(invocation: Invocation, target: DatabaseTarget) -> Iterator[str]:
    """The target's address; the embedded server runs for as long as it is used."""
    if target.url is not None:
        yield target.url
        return
    from arc_halo import embedded

    with embedded.acquire(embedded_directory(invocation)) as lease:
        yield lease.url
