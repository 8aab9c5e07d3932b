"""Files that are there: nothing overwrites them unless `--force` says so."""

from __future__ import annotations

from pathlib import Path

from arc_halo.errors import RefusedError

FORCE = "`--force` overwrites it"


def refuse_existing(*paths: Path | None, force: bool = False, hint: str = FORCE) -> None:
    """Raise `RefusedError` (AH014) for the first file that is there, if it has to stay."""
    there = [path for path in paths if path is not None and path.exists()]
    if there and not force:
        raise RefusedError(f"{there[0]} is there already", hint=hint, code="AH014")
