"""Which files `include` names: patterns expanded, and no path that leaves the project."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

from arc_halo.manifest.paths import PathRefusedError, contained

MAX_FILES: Final = 10_000
"""Files that one pattern may match."""

_EVERYWHERE = "**"


class PathError(Exception):
    """A path of the manifest that cannot be used, with the code, message and hint to report."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


def find_included(
    pattern: str, directory: Path, allow_paths: Sequence[Path] = ()
) -> list[tuple[Path, Path]]:
    """Return the files that an item of `include` names, sorted, each with its real path.

    `*`, `?` and `[…]` match within a name, `**` any directories; names that begin with a dot
    match only a pattern that does too. Raises `PathError`: AH011 when a plain name has no file,
    AH012 when a path leaves the directory and `allow_paths`, AH009 for too many files.
    """
    parts = PurePosixPath(pattern).parts
    fixed = _fixed_parts(parts)
    start = directory.joinpath(*fixed)
    _contained(directory, str(start), allow_paths)
    found = _found(start, parts[len(fixed) :]) if len(fixed) < len(parts) else [_plain(start)]
    return [(file, _contained(directory, str(file), allow_paths)) for file in found]


def _contained(directory: Path, text: str, allow_paths: Sequence[Path]) -> Path:
    try:
        return contained(directory, text, allow_paths)
    except PathRefusedError as error:
        hint = "move the file into the project, or allow its directory with --allow-path DIR"
        raise PathError("AH012", str(error), hint) from error


def _fixed_parts(parts: tuple[str, ...]) -> tuple[str, ...]:
    for index, part in enumerate(parts):
        if any(character in part for character in "*?["):
            return parts[:index]
    return parts


def _plain(path: Path) -> Path:
    if path.is_dir():
        raise PathError(
            "AH011", f"{path.name} is a directory", f"to include its files: {path.name}/*.yaml"
        )
    if not path.is_file():
        raise PathError("AH011", f"there is no file {path.name}", "check the name, or remove it")
    return path


def _found(start: Path, parts: tuple[str, ...]) -> list[Path]:
    if parts.count(_EVERYWHERE) > 1 or ".." in parts:
        hint = "use ** once, and .. only before the first * of a pattern"
        raise PathError("AH011", "the pattern is not supported", hint)
    if parts[-1] == _EVERYWHERE:
        parts = (*parts, "*")
    try:
        found = list(islice(_matches(start, parts), MAX_FILES + 1))
    except OSError as error:
        message = f"cannot list {error.filename}: {error.strerror}"
        raise PathError("AH011", message, "check the rights of the directory") from error
    if len(found) > MAX_FILES:
        message = f"the pattern matches more than {MAX_FILES:,} files"
        raise PathError("AH009", message, "write a narrower one")
    return sorted(found)


def _matches(directory: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    first, rest = parts[0], parts[1:]
    if first == _EVERYWHERE:
        yield from _matches(directory, rest)
        for child in _children(directory, "*"):
            if child.is_dir() and not child.is_symlink():
                yield from _matches(child, parts)
        return
    for child in _children(directory, first):
        if rest and child.is_dir():
            yield from _matches(child, rest)
        elif not rest and child.is_file():
            yield child


def _children(directory: Path, pattern: str) -> Iterator[Path]:
    hidden = pattern.startswith(".")
    for child in directory.iterdir() if directory.is_dir() else ():
        if child.name.startswith(".") == hidden and fnmatchcase(child.name, pattern):
            yield child
