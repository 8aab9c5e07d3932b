"""Keeping the paths a manifest names inside the project directory."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


class PathRefusedError(ValueError):
    """A path leaves the project, or is none. `hint` says what would allow it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def allowing(path: Path) -> str:
    """The hint that lets a manifest name `path`, which is absolute."""
    return f"move it into the project, or say `--allow-path {shlex.quote(str(path.parent))}`"


def contained(directory: Path, text: str, allow_paths: Sequence[Path] = ()) -> Path:
    """`text` as an absolute path, symlinks resolved, under `directory` or an allowed one."""
    try:
        path = (directory / text).resolve()
    except (OSError, ValueError, RuntimeError) as exc:
        raise PathRefusedError(f"{text!r} is not a usable path: {exc}", "correct it") from exc
    roots = [directory.resolve(), *(allowed.resolve() for allowed in allow_paths)]
    if not any(path == root or root in path.parents for root in roots):
        raise PathRefusedError(f"{text!r} leaves the project directory", allowing(path))
    return path
