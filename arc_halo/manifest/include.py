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

SECTIONS: Final = ("models", "strategies", "reactors", "training", "inference")
"""The fields that declare resources by name."""

INCLUDED_FIELDS: Final = ("version", *SECTIONS)
"""The fields of a file that the project file includes; all others are the project file's."""

OVERLAYS: Final = "overlays"
"""The project's directory of overlays, which are never included."""

_EVERYWHERE = "**"


class PathError(Exception):
    """A path of the manifest that cannot be used, with the code, message and hint to report."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


def find_included(
    pattern: str,
    directory: Path,
    allow_paths: Sequence[Path] = (),
    looked_up_in: set[Path] | None = None,
) -> list[tuple[Path, Path]]:
    """Return the files that an item of `include` names, sorted, each with its real path.

    `*`, `?` and `[…]` match within a name, `**` any directories; names that begin with a dot
    match only a pattern that does too; overlays match none. The directories whose files decide
    are added to `looked_up_in`. Raises `PathError`: AH011 when a plain name has no file, AH012
    when a path leaves the directory and `allow_paths`, AH009 for too many files.
    """
    parts = PurePosixPath(pattern).parts
    fixed = _fixed_parts(parts)
    start = directory.joinpath(*fixed)
    _contained(directory, str(start), allow_paths)
    overlays = directory / OVERLAYS
    if start == overlays or overlays in start.parents:
        hint = "its files change the manifest with `--env NAME`; included ones go elsewhere"
        raise PathError("AH011", f"{OVERLAYS}/ is the directory of overlays", hint)
    if len(fixed) == len(parts):
        return [(start, _contained(directory, str(_plain(start)), allow_paths))]
    seen = set() if looked_up_in is None else looked_up_in
    found = _found(start, parts[len(fixed) :], seen, overlays)
    return [(file, _contained(directory, str(file), allow_paths)) for file in found]


def _contained(directory: Path, text: str, allow_paths: Sequence[Path]) -> Path:
    try:
        return contained(directory, text, allow_paths)
    except PathRefusedError as error:
        raise PathError("AH012", str(error), error.hint) from error


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


def _found(start: Path, parts: tuple[str, ...], seen: set[Path], left_out: Path) -> list[Path]:
    if parts.count(_EVERYWHERE) > 1 or ".." in parts:
        hint = "use ** once, and .. only before the first * of a pattern"
        raise PathError("AH011", "the pattern is not supported", hint)
    if parts[-1] == _EVERYWHERE:
        parts = (*parts, "*")
    try:
        found = list(islice(_Search(seen, left_out).matches(start, parts), MAX_FILES + 1))
    except OSError as error:
        message = f"cannot list {error.filename}: {error.strerror}"
        raise PathError("AH011", message, "check the rights of the directory") from error
    if len(found) > MAX_FILES:
        message = f"the pattern matches more than {MAX_FILES:,} files"
        raise PathError("AH009", message, "write a narrower one")
    return sorted(found)


class _Search:
    """Walks directories and notes them, all but the one that is left out."""

    def __init__(self, seen: set[Path], left_out: Path) -> None:
        self._seen = seen
        self._left_out = left_out

    def matches(self, directory: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        first, rest = parts[0], parts[1:]
        if first == _EVERYWHERE:
            yield from self.matches(directory, rest)
            for child in self._children(directory, "*"):
                if child.is_dir() and not child.is_symlink():
                    yield from self.matches(child, parts)
            return
        for child in self._children(directory, first):
            if rest and child.is_dir():
                yield from self.matches(child, rest)
            elif not rest and child.is_file():
                yield child

    def _children(self, directory: Path, pattern: str) -> Iterator[Path]:
        self._seen.add(directory)
        hidden = pattern.startswith(".")
        for child in directory.iterdir() if directory.is_dir() else ():
            is_meant = child.name.startswith(".") == hidden and fnmatchcase(child.name, pattern)
            if is_meant and child != self._left_out:
                yield child
