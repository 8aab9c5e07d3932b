"""`arc-halo attention show`: the heads of a capture, one head drawn, one query in numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.errors import InvalidInputError, RefusedError, UsageError

if TYPE_CHECKING:
    from arc_halo.inference.attention_captures import Attention, Head
    from arc_halo.types import JsonObject

LEAST_CELLS, MOST_CELLS = 8, 500
TOP = 10


@click.command("show")
@click.argument("capture")
@click.option("--layer", type=click.IntRange(min=0), metavar="LAYER", help="From 0.")
@click.option("--head", "number", type=click.IntRange(min=0), metavar="HEAD", help="From 0.")
@click.option("--query", type=int, metavar="PLACE", help="One token: -1 is the last.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --query: so many keys, that get most; 10 if left out.",
)
@click.option(
    "--svg",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the head there.",
)
@click.option(
    "--png",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the head there; needs matplotlib.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
@click.pass_obj
def show(
    invocation: Invocation,
    capture: str,
    layer: int | None,
    number: int | None,
    query: int | None,
    top: int | None,
    svg: Path | None,
    png: Path | None,
    force: bool,
) -> None:
    """Show a capture of attention: its heads in figures, or one head drawn.

    Entropy is in nats; the sink is the first key; the peak is the most that one key gets. All are
    means over the queries. Queries are drawn down and keys across, the more the darker. With
    --query only that row is read.

    \b
    Examples:
      arc-halo attention show prompt-1
      arc-halo attention show prompt-1 --layer 3 --head 5
      arc-halo attention show prompt-1 --layer 3 --head 5 --query -1 --output json
      arc-halo attention show prompt-1 --layer 3 --head 5 --svg head.svg --png head.png
    """
    from arc_halo.inference import attention_captures

    if (layer is None) != (number is None):
        raise UsageError("a head is named by both", hint="write --layer LAYER --head HEAD")
    if number is None and (svg or png or query is not None):
        raise UsageError("which head is meant?", hint="write --layer LAYER --head HEAD")
    if query is None and top is not None:
        raise UsageError("`--top` counts the keys of one query", hint="write --query PLACE too")
    _check_files(svg, png, force)
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        found = attention_captures.read(project.pool, capture)
        if layer is None or number is None:
            _show_heads(invocation, found)
            return
        head = found.head(layer, number)
        if svg or png:
            _draw(invocation, found, head, svg, png)
        if query is not None:
            _show_query(invocation, found, head, query, top or TOP)
        elif not (svg or png) or invocation.output == "json":
            _show_head(invocation, found, head)


def _check_files(svg: Path | None, png: Path | None, force: bool) -> None:
    from arc_halo.inference import heatmap_png

    for file, suffix in ((svg, ".svg"), (png, ".png")):
        if file and file.suffix.lower() != suffix:
            raise InvalidInputError(
                f"{file} is no name of a {suffix[1:].upper()}",
                hint=f"write {file.stem}{suffix}",
                code="AH006",
            )
    if png:
        heatmap_png.check_can_draw()
    for file in (svg, png):
        if file and file.exists() and not force:
            raise RefusedError(
                f"{file} is there already", hint="`--force` overwrites it", code="AH014"
            )


def _show_heads(invocation: Invocation, found: Attention) -> None:
    from arc_halo.cli.telling import facts
    from arc_halo.reconcile.report import as_json

    header = ("layer", "head", "queries", "keys", "entropy", "sink", "peak")
    rows = [
        (
            str(each.layer_index),
            str(each.head_index),
            str(each.query_count),
            str(each.key_count),
            f"{each.mean_entropy:.3f}",
            f"{each.mean_sink_mass:.3f}",
            f"{each.mean_peak:.3f}",
        )
        for each in found.heads
    ]
    title = _title(found)
    render(
        invocation,
        text=lambda: invocation.console.print(f"{title}\n\n{table(header, rows)}"),
        json=lambda: as_json(facts(found.about) | {"heads": [facts(each) for each in found.heads]}),
        markdown=lambda: f"{title}\n\n{markdown_table(header, rows)}",
    )


def _show_head(invocation: Invocation, found: Attention, head: Head) -> None:
    from arc_halo.cli.attention import telling
    from arc_halo.cli.console import printable
    from arc_halo.inference.heatmap import heatmap
    from arc_halo.reconcile.report import as_json

    matrix = head.matrix()
    columns = shutil.get_terminal_size((80, 24)).columns
    room = min(MOST_CELLS, max(LEAST_CELLS, (columns - telling.LABEL - 6) // 2))
    drawn = heatmap(matrix, found.tokens, is_causal=head.shape.is_causal, most_cells=room)
    title = _title(found, head)

    def text() -> None:
        console = invocation.console
        console.print(f"{title}\n{_note(head)}\n")
        console.pieces(telling.drawn(drawn, is_coloured=console.is_coloured))

    def markdown() -> str:
        lines = telling.drawn(drawn, is_coloured=False)
        body = "\n".join("".join(piece.text for piece in line).rstrip() for line in lines)
        return f"{title}\n{_note(head)}\n\n```text\n{printable(body)}\n```"

    def json() -> str:
        rows = [telling.numbers(row[: head.shape.row(q)[1]]) for q, row in enumerate(matrix)]
        return as_json(_head_facts(found, head) | {"rows": rows})

    render(invocation, text=text, json=json, markdown=markdown)


def _show_query(invocation: Invocation, found: Attention, head: Head, query: int, top: int) -> None:
    from arc_halo.cli.attention import telling
    from arc_halo.inference.heatmap import shown
    from arc_halo.reconcile.report import as_json

    row = head.row(query).astype("f8")
    place = query % head.shape.query_count
    tokens = found.tokens
    seen = range(head.shape.row(place)[1])
    best = sorted(seen, key=lambda key: (-row[key], key))[:top]
    header = ("key", "token", "attention")
    rows = [(str(key), shown(tokens[key]), f"{row[key]:.4f}") for key in best]
    title = f"{_title(found, head)}, query {place} {shown(tokens[place])!r}"
    note = (
        f"entropy {head.entropy[place]:.3f}, sink {head.sink_mass[place]:.3f}, "
        f"peak {head.peak[place]:.3f}"
    )
    render(
        invocation,
        text=lambda: invocation.console.print(f"{title}\n{note}\n\n{table(header, rows)}"),
        json=lambda: as_json(
            _head_facts(found, head) | {"query": place, "row": telling.numbers(row[list(seen)])}
        ),
        markdown=lambda: f"{title}\n{note}\n\n{markdown_table(header, rows)}",
    )


def _draw(
    invocation: Invocation, found: Attention, head: Head, svg: Path | None, png: Path | None
) -> None:
    from arc_halo.formats._files import replacing
    from arc_halo.inference import heatmap_png, heatmap_svg
    from arc_halo.inference.heatmap import heatmap

    matrix, title, note = head.matrix(), _title(found, head), _note(head)
    for file, most_cells in ((svg, heatmap_svg.MOST_CELLS), (png, heatmap_png.MOST_CELLS)):
        if file is None:
            continue
        cells = heatmap(matrix, found.tokens, is_causal=head.shape.is_causal, most_cells=most_cells)
        image = (
            heatmap_svg.draw(cells, title, note).encode()
            if file is svg
            else heatmap_png.draw(cells, title, note)
        )
        with replacing(file) as written:
            written.write(image)
        invocation.console.note(f"{file} is written")


def _title(found: Attention, head: Head | None = None) -> str:
    from arc_halo.cli.telling import short
    from arc_halo.inference.heatmap import shown

    about = found.about
    name = f"{shown(about.label)} {short(about.id)}" if about.label else str(about.id)
    of = f", layer {head.layer}, head {head.head}" if head else ""
    return f"{name}, {about.token_count} tokens{of}"


def _note(head: Head) -> str:
    return (
        f"mean entropy {head.entropy.mean():.3f} nats, sink {head.sink_mass.mean():.3f}, "
        f"peak {head.peak.mean():.3f}"
    )


def _head_facts(found: Attention, head: Head) -> JsonObject:
    from arc_halo.cli.attention import telling

    return {
        "capture": str(found.about.id),
        "layer": head.layer,
        "head": head.head,
        "tokens": found.tokens,
        "query_count": head.shape.query_count,
        "key_count": head.shape.key_count,
        "is_causal": head.shape.is_causal,
        "dtype": head.shape.dtype,
        "entropy": telling.numbers(head.entropy),
        "sink_mass": telling.numbers(head.sink_mass),
        "peak": telling.numbers(head.peak),
    }
