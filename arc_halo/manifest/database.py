"""`database:` of a project, read without the rest of its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arc_halo.config import PROJECT_FILE
from arc_halo.errors import InvalidInputError, ManifestError, Problem
from arc_halo.manifest.include import PathError
from arc_halo.manifest.load import load_text
from arc_halo.manifest.overlays import find_overlay, merged, overlay_label
from arc_halo.manifest.variables import expand


def declared_database(
    directory: Path,
    environ: Mapping[str, str],
    *,
    environment: str | None = None,
    allow_paths: Sequence[Path] = (),
) -> tuple[str | Mapping[str, object] | None, str]:
    """What a project says of its database, variables expanded, and which file says it.

    Other faults of the manifest do not count here: one must be able to look at the database of
    a project that is being repaired. But an environment without an overlay is no other one's.
    """
    said, label = _field(directory / PROJECT_FILE, PROJECT_FILE), PROJECT_FILE
    if environment is not None and (directory / PROJECT_FILE).is_file():
        patch = _overlay(directory, environment, allow_paths)
        said, label = merged(said, patch), overlay_label(environment) if patch else label
    return _checked(said.get("database"), environ, label), label


def _overlay(directory: Path, environment: str, allow_paths: Sequence[Path]) -> dict[str, Any]:
    try:
        path, label = find_overlay(directory, environment, allow_paths)
    except PathError as exc:
        label = overlay_label(environment)
        problem = Problem(code=exc.code, message=exc.message, file=label, hint=exc.hint)
        raise ManifestError([problem]) from exc
    return _field(path, label)


def _field(path: Path, label: str) -> dict[str, Any]:
    """The field alone, in a mapping that is empty where the file does not have it."""
    if not path.is_file():
        return {}
    data = load_text(path.read_bytes(), path=path, label=label).data
    return {name: value for name, value in data.items() if name == "database"}


def _checked(
    database: object, environ: Mapping[str, str], label: str
) -> str | Mapping[str, object] | None:
    match database:
        case None:
            return None
        case str():
            return _expanded(database, environ, label)
        case dict() if isinstance(url := database.get("url"), str):
            return {**database, "url": _expanded(url, environ, label)}
        case dict():
            return database
        case _:
            raise InvalidInputError(
                f"{label}: database must be an address, or {{url, password}}", code="AH004"
            )


def _expanded(text: str, environ: Mapping[str, str], label: str) -> str:
    value, problems = expand(text, environ)
    if problems:
        raise InvalidInputError(
            f"{label}: database: {problems[0].message}", code="AH008", hint=problems[0].hint
        )
    return value
