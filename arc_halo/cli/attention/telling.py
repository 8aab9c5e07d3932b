"""How captures of attention and their heads are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arc_halo.cli.console import Piece
from arc_halo.cli.telling import json_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from arc_halo.inference.heatmap import Heatmap
    from arc_halo.store.attention_reading import CaptureRow

LETTERS = 40
"""Of a text's beginning."""

MARKS = ("··", "░░", "▒▒", "▓▓", "██")
"""From little to the most, where there are no colours; nothing has none."""

LABEL = 14
"""Columns of a token beside its row."""


def beginning(capture: CaptureRow) -> str:
    """The first of its tokens; `-` where they have no texts."""
    if capture.token_texts is None:
        return "-"
    text = "".join(capture.token_texts)
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def numbers(values: Any) -> list[float | str | None]:
    """An array of one axis as JSON has it."""
    return [json_number(float(value)) for value in values]


def drawn(found: Heatmap, *, is_coloured: bool) -> Iterator[Sequence[Piece]]:
    """The lines of a heatmap: a token beside each row, and the places of every fifth column."""
    width = max((len(_label(place, found)) for place in range(len(found.queries))), default=0)
    for query in range(len(found.queries)):
        cells = (_cell(found, query, key, is_coloured) for key in range(len(found.keys)))
        yield [Piece(f"{_label(query, found):>{width}} "), *cells]
    places = "".join(f"{place * found.size:<10}" for place in range(0, len(found.keys), 5))
    yield [Piece(f"{'':>{width}} {places}".rstrip())]
    ends = "light to dark" if is_coloured else f"{MARKS[0]} to {MARKS[-1]}"
    shared = f"; {found.size} tokens a cell, of each the most" if found.size > 1 else ""
    yield [Piece(f"{'':>{width}} {ends}: 0 to {found.most:.3g}{shared}")]


def _label(query: int, found: Heatmap) -> str:
    label = found.queries[query]
    if found.size > 1:
        return label
    cut = label if len(label) <= LABEL else f"{label[: LABEL - 1]}…"
    return f"{cut} {query:>3}"


def _cell(found: Heatmap, query: int, key: int, is_coloured: bool) -> Piece:
    from arc_halo.inference.heatmap import COLOURS

    step = found.step(query, key)
    if step is None:
        return Piece("  ")
    if is_coloured:
        return Piece("  ", COLOURS[step])
    if step == 0:
        return Piece("  ")
    return Piece(MARKS[round((step - 1) / (len(COLOURS) - 2) * (len(MARKS) - 1))])
