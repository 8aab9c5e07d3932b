"""What a project file says of the project itself, read without the rest of its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arc_halo.config import PROJECT_FILE
from arc_halo.errors import InvalidInputError, ManifestError, Problem
from arc_halo.manifest.include import PathError
from arc_halo.manifest.load import Source, load_text
from arc_halo.manifest.overlays import find_overlay, merged, overlay_label
from arc_halo.manifest.positions import problem
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
    source: Source | None = field(default=None, repr=False)
    """The file that says `database:`."""

    def database(self) -> str | Mapping[str, object] | None:
        """`database:`, variables expanded. Raises `ManifestError` for what is none."""
        try:
            return _checked(self.data.get("database"), self.environ)
        except InvalidInputError as exc:
            raise self.placed(exc) from exc

    def placed(self, error: InvalidInputError) -> InvalidInputError:
        """A mistake in `database:`, with its line; its message begins with the field."""
        if self.source is None:
            return error
        named = error.message.partition(":")[0]
        pointer = tuple(named.split(".")) if named.startswith("database") else ("database",)
        return ManifestError(
            [problem(self.source, pointer, error.error_code, error.message, hint=error.hint)]
        )

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
        return _expanded(name, self.environ, f"{PROJECT_FILE}: project")

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
    own = source = _source(directory / PROJECT_FILE, PROJECT_FILE)
    said = own.data if own else {}
    if environment is not None and own is not None:
        overlay = _overlay(directory, environment, allow_paths)
        patch = overlay.data if overlay else {}
        source = overlay if "database" in patch else own
        said = merged(said, patch)
    label = source.label if source else PROJECT_FILE
    return Head(data=said, database_file=label, environ=environ, source=source)


def _overlay(directory: Path, environment: str, allow_paths: Sequence[Path]) -> Source | None:
    try:
        path, label = find_overlay(directory, environment, allow_paths)
    except PathError as exc:
        label = overlay_label(environment)
        problem = Problem(code=exc.code, message=exc.message, file=label, hint=exc.hint)
        raise ManifestError([problem]) from exc
    return _source(path, label)


def _source(path: Path, label: str) -> Source | None:
    """What a file says; nothing, where it is not there."""
    return load_text(path.read_bytes(), path=path, label=label) if path.is_file() else None


def _checked(database: object, environ: Mapping[str, str]) -> str | Mapping[str, object] | None:
    match database:
        case None:
            return None
        case str():
            return _expanded(database, environ, "database")
        case dict() if isinstance(url := database.get("url"), str):
            return {**database, "url": _expanded(url, environ, "database.url")}
        case dict():
            return database
        case _:
            raise InvalidInputError(
                "database: neither an address nor {url, password}", code="AH004"
            )


def _expanded(text: str, environ: Mapping[str, str], name: str) -> str:
    value, problems = expand(text, environ)
    if problems:
        raise InvalidInputError(
            f"{name}: {problems[0].message}", code="AH008", hint=problems[0].hint
        )
    return value
