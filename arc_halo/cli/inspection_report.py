"""What `fuse inspect` found, for people, for programs, for a pull request."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.cli.console import Console, Piece
from arc_halo.cli.invocation import markdown_table, table
from arc_halo.sizes import format_size

if TYPE_CHECKING:
    from arc_halo.fusion.conflicts import Inspection, TensorConflict
    from arc_halo.fusion.heatmap import Panel
    from arc_halo.types import JsonObject

MARKS = "●○ ▒█"
"""From agreeing to opposed, where there are no colours; what is unrelated has none."""

TITLE_WIDTH = 13
"""Of the longer title, so that panels stand under each other."""

WORST_HEADER = ("tensor", "sign conflict", "cosine", "changes", "elements")


def as_facts(found: Inspection, sample: int) -> JsonObject:
    return {
        "sample": sample,
        "mean_cosine": found.mean_cosine,
        "sign_conflict": found.sign_conflict,
        "relative_norms": found.relative_norms,
        "read_bytes": found.read_bytes,
        "size_bytes": found.size_bytes,
        "worst": [each.name for each in found.worst()],
        "tensors": [_tensor(each) for each in found.tensors],
    }


def as_markdown(found: Inspection, base: str | None) -> str:
    parts = []
    for panel in _panels(found):
        header = (panel.title, *panel.heatmap.columns)
        parts.append(markdown_table(header, [(r, *_texts(panel, r)) for r in panel.heatmap.rows]))
    parts += [markdown_table(WORST_HEADER, _worst(found)), *_summary(found, base)]
    return "\n\n".join(parts)


def print_text(console: Console, found: Inspection, base: str | None) -> None:
    for panel in _panels(found):
        console.pieces(_lines(panel, is_coloured=console.is_coloured))
        console.print("")
    console.print(f"{table(WORST_HEADER, _worst(found))}\n")
    console.print("\n".join(_summary(found, base)))


def _tensor(each: TensorConflict) -> JsonObject:
    means = {"mean_cosine": each.mean_cosine, "sign_conflict": each.sign_conflict}
    return dataclasses.asdict(each) | means


def _panels(found: Inspection) -> tuple[Panel, ...]:
    from arc_halo.fusion.heatmap import panels

    return panels(found.tensors)


def _texts(panel: Panel, row: str) -> list[str]:
    values = (panel.value(row, column) for column in panel.heatmap.columns)
    return ["" if value is None else panel.text(value) for value in values]


def _lines(panel: Panel, *, is_coloured: bool) -> Iterator[Sequence[Piece]]:
    """The names of columns stand word under word, so that cells are narrow."""
    rows, columns = panel.heatmap.rows, panel.heatmap.columns
    headers = [column.replace("_", ".").split(".") for column in columns]
    widths = [max(6, *(len(word) for word in words)) + 2 for words in headers]
    first = max(TITLE_WIDTH, *map(len, rows))
    height = max(map(len, headers))
    for line in range(height):
        words = [([""] * (height - len(words)) + words)[line] for words in headers]
        label = panel.title if line == height - 1 else ""
        texts = [f"{word:>{width - 1}} " for word, width in zip(words, widths, strict=True)]
        yield [Piece(f"{label:<{first}} {''.join(texts)}")]
    for row in rows:
        cells = (
            _cell(panel.value(row, column), width, panel, is_coloured=is_coloured)
            for column, width in zip(columns, widths, strict=True)
        )
        yield [Piece(f"{row:>{first}} "), *cells]
    yield [Piece(" " * (first + 2) + _legend(panel, is_coloured=is_coloured))]


def _cell(value: float | None, width: int, panel: Panel, *, is_coloured: bool) -> Piece:
    from arc_halo.fusion.heatmap import COLOURS

    if value is None:
        return Piece(" " * width)
    if is_coloured:
        step = panel.scale.step(value)
        return Piece(f"{panel.text(value):>{width - 1}} ", COLOURS[step])
    mark = MARKS[round((panel.scale.shade(value) + 1) / 2 * (len(MARKS) - 1))]
    return Piece(f"{panel.text(value) + mark:>{width}}")


def _legend(panel: Panel, *, is_coloured: bool) -> str:
    scale = panel.scale
    agreeing, opposed = (scale.low, scale.high) if scale.rising else (scale.high, scale.low)
    ends = f"{panel.text(agreeing)} agreeing", f"{panel.text(opposed)} opposed"
    middle = f"{panel.text(scale.middle)} unrelated"
    marks = ("blue ", "", "red ") if is_coloured else (f"{MARKS[:2]} ", "", f"{MARKS[-2:]} ")
    texts = (ends[0], middle, ends[1])
    return " · ".join(mark + text for mark, text in zip(marks, texts, strict=True))


def _worst(found: Inspection) -> list[tuple[str, ...]]:
    return [
        (
            each.name,
            _percent(each.sign_conflict),
            "-" if each.mean_cosine is None else f"{each.mean_cosine:+z.3f}",
            ", ".join(map(_percent, each.relative_norms)) if each.relative_norms else "-",
            f"{each.elements:,}",
        )
        for each in found.worst()
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _summary(found: Inspection, base: str | None) -> list[str]:
    cosine = "-" if found.mean_cosine is None else f"{found.mean_cosine:+z.3f}"
    share = found.read_bytes / found.size_bytes if found.size_bytes else 0
    conflict = f"Mean cosine {cosine}, mean sign conflict {_percent(found.sign_conflict)}"
    read = f"Read {format_size(found.read_bytes)} of {format_size(found.size_bytes)} ({share:.1%})"
    norms = found.relative_norms
    told = ", ".join(f"{model} {_percent(value)}" for model, value in norms.items())
    changes = f"Norms of the changes, over that of {base}: {told}."
    if base is None:
        changes = "These are the models themselves, not what they changed: name their `--base`."
    return [f"{conflict}; unrelated changes have 0 and 50%.", changes, f"{read}."]
