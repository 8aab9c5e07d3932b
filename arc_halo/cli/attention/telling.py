"""How captures of attention and their heads are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arc_halo.cli.console import Piece
from arc_halo.cli.telling import json_number, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from arc_halo.inference.attention_captures import Attention, Head
    from arc_halo.inference.heatmap import Heatmap
    from arc_halo.store.attention_reading import CaptureRow
    from arc_halo.types import JsonObject

LETTERS = 40
"""Of a text's beginning."""

MARKS = ("··", "░░", "▒▒", "▓▓", "██")
"""From little to the most, where there are no colours; nothing has none."""

SIGNS = ("--", "--", "- ", "  ", "+ ", "++", "++")
"""Of differences, from less to more."""

GAP = 2
"""Columns between patterns that are beside one another."""

LABEL = 14
"""Columns of a token beside its row."""


def beginning(capture: CaptureRow) -> str:
    """The first of its tokens; `-` where they have no texts."""
    if capture.token_texts is None:
        return "-"
    text = "".join(capture.token_texts)
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def title(found: Attention) -> str:
    """What a capture is called."""
    from arc_halo.inference.heatmap import shown

    about = found.about
    return f"{shown(about.label)} {short(about.id)}" if about.label else str(about.id)


def head_facts(head: Head) -> JsonObject:
    """A head and its queries in figures, as JSON."""
    return {
        "head": head.head,
        "query_count": head.shape.query_count,
        "key_count": head.shape.key_count,
        "is_causal": head.shape.is_causal,
        "dtype": head.shape.dtype,
        "entropy": numbers(head.entropy),
        "sink_mass": numbers(head.sink_mass),
        "peak": numbers(head.peak),
    }


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
    yield [Piece(f"{'':>{width}} {_legend(found, is_coloured)}")]


def beside(
    found: Sequence[Heatmap], columns: int, *, is_coloured: bool
) -> Iterator[Sequence[Piece]]:
    """The lines of several heatmaps of one shape, each below its name, as wide as the terminal."""
    rows, keys = found[0].values.shape
    width = max(2 * keys, *(len(each.name) for each in found))
    across = max(1, (columns + GAP) // (width + GAP))
    for start in range(0, len(found), across):
        line = found[start : start + across]
        yield [Piece(f"{each.name:<{width + GAP}}") for each in line]
        for query in range(rows):
            pieces = []
            for each in line:
                pieces += [_cell(each, query, key, is_coloured) for key in range(keys)]
                pieces.append(Piece(" " * (width + GAP - 2 * keys)))
            yield pieces
        yield [Piece("")]
    yield [Piece(_legend(found[0], is_coloured))]


def _legend(found: Heatmap, is_coloured: bool) -> str:
    marks = SIGNS if found.is_difference else MARKS
    colours = "blue to red" if found.is_difference else "light to dark"
    ends = colours if is_coloured else f"{marks[0]} to {marks[-1]}"
    shared = f"; {found.size} tokens a cell, of each the most" if found.size > 1 else ""
    return f"{ends}: {found.range}{shared}"


def _label(query: int, found: Heatmap) -> str:
    label = found.queries[query]
    if found.size > 1:
        return label
    cut = label if len(label) <= LABEL else f"{label[: LABEL - 1]}…"
    return f"{cut} {query:>3}"


def _cell(found: Heatmap, query: int, key: int, is_coloured: bool) -> Piece:
    from arc_halo.inference.heatmap import COLOURS, LESS_TO_MORE

    step = found.step(query, key)
    if step is None:
        return Piece("  ")
    if is_coloured:
        return Piece("  ", (LESS_TO_MORE if found.is_difference else COLOURS)[step])
    if found.is_difference:
        return Piece(SIGNS[step])
    if step == 0:
        return Piece("  ")
    return Piece(MARKS[round((step - 1) / (len(COLOURS) - 2) * (len(MARKS) - 1))])
