"""Which database a command works on, and how it comes to its address."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from arc_halo.cli.invocation import Invocation
from arc_halo.config import PROJECT_FILE, DatabaseTarget, database_target, load_environment
from arc_halo.errors import InvalidInputError, UsageError


def target_of(invocation: Invocation) -> DatabaseTarget:
    """The database that the flag, the environment, `.env` and the manifest name together."""
    directory = invocation.project_directory
    environ = load_environment(directory, os.environ)
    decided = invocation.database_url or environ.get("ARC_HALO_DATABASE_URL")
    manifest = None if decided or directory is None else _manifest_database(directory, environ)
    return database_target(
        flag=invocation.database_url,
        environ=environ,
        manifest_database=manifest,
        project_directory=directory,
    )


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


def _manifest_database(
    directory: Path, environ: Mapping[str, str]
) -> str | Mapping[str, object] | None:
    """`database:` of the project file. Its other faults, and those of its includes, do not count
    here: one must be able to look at the database of a project that is being repaired."""
    from arc_halo.manifest.load import load_text

    path = directory / PROJECT_FILE
    if not path.is_file():
        return None
    database = load_text(path.read_bytes(), path=path, label=PROJECT_FILE).data.get("database")
    match database:
        case None:
            return None
        case str():
            return _expanded(database, environ)
        case {"url": str(url)}:
            return {**database, "url": _expanded(url, environ)}
        case dict():
            return database
        case _:
            raise InvalidInputError(
                f"{PROJECT_FILE}: database must be an address, or {{url, password}}", code="AH004"
            )


def _expanded(text: str, environ: Mapping[str, str]) -> str:
    from arc_halo.manifest.variables import expand

    value, problems = expand(text, environ)
    if problems:
        raise InvalidInputError(
            f"{PROJECT_FILE}: database: {problems[0].message}", code="AH008", hint=problems[0].hint
        )
    return value
