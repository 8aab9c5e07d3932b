"""Heads of a capture as pictures: in the terminal, as numbers in JSON, and in files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from arc_halo.cli.invocation import Invocation, render

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from arc_halo.inference.attention_captures import Attention, Head
    from arc_halo.inference.heatmap import Heatmap
    from arc_halo.types import JsonObject

LEAST_CELLS, MOST_CELLS = 8, 500
SMALL_CELLS = 12
"""A side of one of several in the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Heads of a layer, or what these are more than `others`, those of `minus`.

    Their patterns are read one after another: all at once may be more than memory holds.
    """

    capture: Attention
    minus: Attention | None
    layer: int
    heads: Sequence[Head]
    others: Sequence[Head]
    is_whole_layer: bool

    def pattern(self, place: int) -> NDArray[Any]:
        """Of a head, [queries, keys]."""
        head = self.heads[place]
        return head.minus(self.others[place]) if self.minus else head.matrix()

    def is_causal(self, place: int) -> bool:
        heads = [each[place] for each in (self.heads, self.others) if each]
        return all(each.shape.is_causal for each in heads)

    @property
    def title(self) -> str:
        from arc_halo.cli.attention import telling

        minus = f" minus {telling.title(self.minus)}" if self.minus else ""
        head = "" if self.is_whole_layer else f", head {self.heads[0].head}"
        tokens = f"{self.capture.about.token_count} tokens"
        return f"{telling.title(self.capture)}{minus}, {tokens}, layer {self.layer}{head}"

    @property
    def note(self) -> str:
        def mean(name: str) -> float:
            return fmean(float(getattr(each, name).mean()) for each in self.heads)

        if self.minus:
            moved = fmean(_moved(self.pattern(place)) for place in range(len(self.heads)))
            return f"mean part of a query's attention that is elsewhere {moved:.3f}"
        return (
            f"mean entropy {mean('entropy'):.3f} nats, sink {mean('sink_mass'):.3f}, "
            f"peak {mean('peak'):.3f}"
        )

    def heatmaps(self, most_cells: int) -> list[Heatmap]:
        """The heads as cells, at most so many a side, in shades of one scale."""
        from arc_halo.inference.heatmap import heatmap, of_one_scale

        return of_one_scale(
            [
                heatmap(
                    self.pattern(place),
                    self.capture.tokens,
                    is_causal=self.is_causal(place),
                    most_cells=most_cells,
                    is_difference=self.minus is not None,
                    name=f"head {head.head}" if self.is_whole_layer else "",
                )
                for place, head in enumerate(self.heads)
            ]
        )


def drawing(capture: Attention, layer: int, number: int | None, minus: Attention | None) -> Drawing:
    """A head of a layer, or all of them. Raises `NotFoundError`."""
    heads = capture.layer(layer) if number is None else [capture.head(layer, number)]
    return Drawing(
        capture=capture,
        minus=minus,
        layer=layer,
        heads=heads,
        others=[minus.head(layer, each.head) for each in heads] if minus else [],
        is_whole_layer=number is None,
    )


def show(invocation: Invocation, drawn: Drawing) -> None:
    """Draw it in the terminal; JSON has the numbers."""
    from arc_halo.cli.attention import telling
    from arc_halo.cli.console import Piece, printable
    from arc_halo.reconcile.report import as_json

    columns = shutil.get_terminal_size((80, 24)).columns
    room = min(MOST_CELLS, max(LEAST_CELLS, (columns - telling.LABEL - 6) // 2))
    cells = drawn.heatmaps(SMALL_CELLS if drawn.is_whole_layer else room)

    def lines(is_coloured: bool) -> list[Sequence[Piece]]:
        if drawn.is_whole_layer:
            return list(telling.beside(cells, columns, is_coloured=is_coloured))
        return list(telling.drawn(cells[0], is_coloured=is_coloured))

    def text() -> None:
        console = invocation.console
        console.print(f"{drawn.title}\n{drawn.note}\n")
        console.pieces(lines(console.is_coloured))

    def markdown() -> str:
        body = "\n".join("".join(piece.text for piece in line).rstrip() for line in lines(False))
        return f"{drawn.title}\n{drawn.note}\n\n```text\n{printable(body)}\n```"

    render(invocation, text=text, json=lambda: as_json(_facts(drawn)), markdown=markdown)


def write(invocation: Invocation, drawn: Drawing, *, svg: Path | None, png: Path | None) -> None:
    """Draw it into files."""
    from arc_halo.formats._files import replacing
    from arc_halo.inference import heatmap_png, heatmap_svg
    from arc_halo.inference.heatmap import columns_of

    across, title, note = columns_of(len(drawn.heads)), drawn.title, drawn.note
    images = []
    if svg:
        cells = drawn.heatmaps(heatmap_svg.MOST_CELLS // across)
        images.append((svg, heatmap_svg.draw(cells, title, note).encode()))
    if png:
        cells = drawn.heatmaps(heatmap_png.MOST_CELLS // across)
        images.append((png, heatmap_png.draw(cells, title, note)))
    for file, image in images:
        with replacing(file) as written:
            written.write(image)
        invocation.console.note(f"{file} is written")


def _facts(drawn: Drawing) -> JsonObject:
    """With a whole layer, the heads stand under `heads`."""
    heads = [_head_facts(drawn, place) for place in range(len(drawn.heads))]
    return {
        "capture": str(drawn.capture.about.id),
        **({"minus": str(drawn.minus.about.id)} if drawn.minus else {}),
        "layer": drawn.layer,
        "tokens": drawn.capture.tokens,
        **({"heads": heads} if drawn.is_whole_layer else heads[0]),
    }


def _head_facts(drawn: Drawing, place: int) -> JsonObject:
    """Each row as far as its query sees."""
    from dataclasses import replace

    from arc_halo.cli.attention import telling

    head, pattern = drawn.heads[place], drawn.pattern(place)
    shape = replace(head.shape, is_causal=drawn.is_causal(place))
    facts = (
        telling.head_facts(head)
        if not drawn.minus
        else {
            "head": head.head,
            "query_count": shape.query_count,
            "key_count": shape.key_count,
            "is_causal": shape.is_causal,
            "moved": telling.numbers([_moved(pattern)])[0],
        }
    )
    rows = [telling.numbers(row[: shape.row(query)[1]]) for query, row in enumerate(pattern)]
    return {**facts, "rows": rows}


def _moved(difference: NDArray[Any]) -> float:
    """Of a query's attention, the part that goes to other keys than in the other pattern."""
    return float(abs(difference).sum(axis=1).mean() / 2)
