"""Which format a path is of, by its name, or by the names in the directory it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from arc_halo.errors import FormatError
from arc_halo.formats._files import unreadable
from arc_halo.types import WeightFormat

USUAL = "safetensors"


def find_format(path: Path, formats: Mapping[str, WeightFormat]) -> WeightFormat:
    """The format whose suffix, the longest of those that fit, the path ends with.

    A directory is of the format that a file in it has, safetensors before others. Raises
    `FormatError` where no format fits.
    """
    ordered = sorted(formats.values(), key=lambda known: (known.name != USUAL, known.name))
    if path.is_dir():
        names = _names(path)
        fitting = [known for known in ordered if any(n.endswith(known.suffixes) for n in names)]
    else:
        fitting = sorted(
            (known for known in ordered if path.name.endswith(known.suffixes)),
            key=lambda known: -max(len(s) for s in known.suffixes if path.name.endswith(s)),
        )
    if fitting:
        return fitting[0]
    suffixes = ", ".join(suffix for known in ordered for suffix in known.suffixes)
    raise FormatError(
        f"no loaded plugin reads {path.name or str(path)!r}",
        hint=f"readable are {suffixes}; `--format NAME` says what another name is",
        code="AH032",
    )


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except OSError as exc:
        raise unreadable(directory, exc) from exc
