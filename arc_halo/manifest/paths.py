"""Keeping the paths a manifest names inside the project directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class PathRefusedError(ValueError):
    """A path leaves the project; the text says which and where it leads."""


def contained(directory: Path, text: str, allow_paths: Sequence[Path] = ()) -> Path:
    """`text` as an absolute path, symlinks resolved, under `directory` or an allowed one."""
    try:
        path = (directory / text).resolve()
    except (OSError, ValueError, RuntimeError) as exc:
        raise PathRefusedError(f"{text!r} is not a usable path: {exc}") from exc
    roots = [directory.resolve(), *(allowed.resolve() for allowed in allow_paths)]
    if not any(path == root or root in path.parents for root in roots):
        raise PathRefusedError(f"{text!r} leaves the project directory")
    return path
