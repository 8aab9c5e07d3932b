"""What a project file says of the project itself, read without the rest of its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arc_halo.config import PROJECT_FILE
from arc_halo.errors import InvalidInputError, ManifestError, Problem
from arc_halo.manifest.include import PathError
from arc_halo.manifest.load import load_text
from arc_halo.manifest.overlays import find_overlay, merged, overlay_label
from arc_halo.manifest.variables import expand

DEFAULT_THREADS, MAX_THREADS = 2, 256


@dataclass(frozen=True, kw_only=True)
class Head:
    """The project file and its overlay as they are written, and which file names a database.

    Other faults of the manifest do not count here: one must be able to look at the database of
    a project that is being repaired. But an environment without an overlay is no other one's.
    """

    data: Mapping[str, Any]
    database_file: str
    environ: Mapping[str, str] = field(repr=False)

    def database(self) -> str | Mapping[str, object] | None:
        """`database:`, variables expanded. Raises `InvalidInputError` for what is none."""
        return _checked(self.data.get("database"), self.environ, self.database_file)

    @property
    def project(self) -> str:
        """`project:`. Raises `InvalidInputError` where the file does not say."""
        name = self.data.get("project")
        if not isinstance(name, str) or not name:
            raise InvalidInputError(
                f"{PROJECT_FILE} does not say which project it is",
                hint="write `project: NAME` into it",
                code="AH005",
            )
        return _expanded(name, self.environ, PROJECT_FILE, "project")

    @property
    def threads(self) -> int:
        """`settings.threads`, or the default for what is no such number."""
        settings = self.data.get("settings")
        threads = settings.get("threads") if isinstance(settings, Mapping) else None
        is_number = isinstance(threads, int) and 1 <= threads <= MAX_THREADS
        return threads if is_number and isinstance(threads, int) else DEFAULT_THREADS


def read_head(
    directory: Path,
    environ: Mapping[str, str],
    *,
    environment: str | None = None,
    allow_paths: Sequence[Path] = (),
) -> Head:
    """What the project file in `directory` and its overlay say; without one, nothing."""
    said, label = _data(directory / PROJECT_FILE, PROJECT_FILE), PROJECT_FILE
    if environment is not None and (directory / PROJECT_FILE).is_file():
        patch = _overlay(directory, environment, allow_paths)
        label = overlay_label(environment) if "database" in patch else label
        said = merged(said, patch)
    return Head(data=said, database_file=label, environ=environ)


def _overlay(directory: Path, environment: str, allow_paths: Sequence[Path]) -> dict[str, Any]:
    try:
        path, label = find_overlay(directory, environment, allow_paths)
    except PathError as exc:
        label = overlay_label(environment)
        problem = Problem(code=exc.code, message=exc.message, file=label, hint=exc.hint)
        raise ManifestError([problem]) from exc
    return _data(path, label)


def _data(path: Path, label: str) -> dict[str, Any]:
    """What a file says; nothing, where it is not there."""
    if not path.is_file():
        return {}
    return load_text(path.read_bytes(), path=path, label=label).data


def _checked(
    database: object, environ: Mapping[str, str], label: str
) -> str | Mapping[str, object] | None:
    match database:
        case None:
            return None
        case str():
            return _expanded(database, environ, label, "database")
        case dict() if isinstance(url := database.get("url"), str):
            return {**database, "url": _expanded(url, environ, label, "database")}
        case dict():
            return database
        case _:
            raise InvalidInputError(
                f"{label}: database must be an address, or {{url, password}}", code="AH004"
            )


def _expanded(text: str, environ: Mapping[str, str], label: str, name: str) -> str:
    value, problems = expand(text, environ)
    if problems:
        raise InvalidInputError(
            f"{label}: {name}: {problems[0].message}", code="AH008", hint=problems[0].hint
        )
    return value
