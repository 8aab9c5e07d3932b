"""`database:` of a project file, read without the rest of the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from arc_halo.config import PROJECT_FILE
from arc_halo.errors import InvalidInputError
from arc_halo.manifest.load import load_text
from arc_halo.manifest.variables import expand


def declared_database(
    directory: Path, environ: Mapping[str, str]
) -> str | Mapping[str, object] | None:
    """What the project file in `directory` says of the database, variables expanded.

    Other faults of the manifest do not count here: one must be able to look at the database of
    a project that is being repaired.
    """
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
    value, problems = expand(text, environ)
    if problems:
        raise InvalidInputError(
            f"{PROJECT_FILE}: database: {problems[0].message}", code="AH008", hint=problems[0].hint
        )
    return value
