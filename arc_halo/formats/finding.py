"""Which format a path is of, by its name, or by the names in the directory it is."""

from __future__ import annotations

from collections.abc import Mapping
from errno import ENOENT
from os import strerror
from pathlib import Path

from arc_halo.errors import FormatError
from arc_halo.formats._files import unreadable
from arc_halo.types import WeightFormat

USUAL = "safetensors"


def find_format(path: Path, formats: Mapping[str, WeightFormat]) -> WeightFormat:
    """The format of a file by its name, or of a directory by the names in it.

    Raises `FormatError` where no format fits.
    """
    found = (
        format_of_directory(path, formats) if path.is_dir() else format_of_name(path.name, formats)
    )
    if found is not None:
        return formats[found]
    if not path.exists():
        raise unreadable(path, FileNotFoundError(ENOENT, strerror(ENOENT)))
    if path.is_dir():
        raise FormatError(
            f"{path}: no file of weights is in this directory",
            hint="name a file, or the directory that holds one",
            code="AH025",
        )
    suffixes = ", ".join(suffix for known in formats.values() for suffix in known.suffixes)
    raise FormatError(
        f"no loaded plugin reads {path.name or str(path)!r}",
        hint=f"readable are {suffixes}; `--format NAME` says what another name is",
        code="AH032",
    )


def format_of_name(name: str, formats: Mapping[str, WeightFormat]) -> str | None:
    """The format with the longest suffix that the file's name ends with."""
    fitting = {
        suffix: known
        for known, item in formats.items()
        for suffix in item.suffixes
        if name.endswith(suffix)
    }
    return fitting[max(fitting, key=len)] if fitting else None


def format_of_directory(directory: Path, formats: Mapping[str, WeightFormat]) -> str | None:
    """The format that a file in the directory has, the usual one before others.

    Raises `FormatError` for a directory that cannot be read.
    """
    try:
        names = [path.name for path in directory.iterdir()]
    except OSError as exc:
        raise unreadable(directory, exc) from exc
    found = {known for name in names if (known := format_of_name(name, formats)) is not None}
    return USUAL if USUAL in found else min(found, default=None)
