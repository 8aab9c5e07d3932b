"""What every benchmark prints: a line a figure, with its bar and whether that is met."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the result. `is_met` is None for what is told for information."""

    what: str
    figure: str
    bar: str = ""
    is_met: bool | None = None


def show(rows: Iterable[Row]) -> int:
    """Print the rows as they come; 1 when a bar is missed, the exit code."""
    is_missed = False
    for row in rows:
        verdict = {True: "ok", False: "MISSED", None: ""}[row.is_met]
        line = f"{row.what:<52}  {row.figure:<44}  {row.bar:<8}  {verdict}"
        print(line.rstrip(), flush=True)
        is_missed |= row.is_met is False
    return int(is_missed)
