"""`arc-halo attention show`: the heads of a capture, one head drawn, one query in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.overwriting import refuse_existing
from arc_halo.errors import InvalidInputError, UsageError

if TYPE_CHECKING:
    from arc_halo.inference.attention_captures import Attention, Head

TOP = 10


@click.command("show")
@click.argument("capture")
@click.option(
    "--layer", type=click.IntRange(min=0), metavar="LAYER", help="From 0: all of its heads."
)
@click.option(
    "--head", "number", type=click.IntRange(min=0), metavar="HEAD", help="From 0: that one."
)
@click.option("--minus", metavar="OTHER", help="Draw what is more, and less, than in this capture.")
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
    help="Draw it there.",
)
@click.option(
    "--png",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw it there; needs matplotlib.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
@click.pass_obj
def show(
    invocation: Invocation,
    capture: str,
    layer: int | None,
    number: int | None,
    minus: str | None,
    query: int | None,
    top: int | None,
    svg: Path | None,
    png: Path | None,
    force: bool,
) -> None:
    """Show a capture of attention: its heads in figures, or one head drawn, or a layer's.

    Entropy is in nats; the sink is the first key; the peak is the most that one key gets. All are
    means over the queries. Queries are drawn down and keys across, the more the darker; with
    --minus what is less is blue, and what is more red. With --query only that row is read.

    \b
    Examples:
      arc-halo attention show prompt-1
      arc-halo attention show prompt-1 --layer 3
      arc-halo attention show prompt-1 --layer 3 --head 5 --query -1 --output json
      arc-halo attention show prompt-1 --layer 3 --head 5 --svg head.svg --png head.png
      arc-halo attention show tuned --minus base --layer 3 --svg changed.svg
    """
    from arc_halo.cli.attention import drawing
    from arc_halo.inference import attention_captures

    _check_usage(layer, number, minus, query, top, draws=bool(svg or png))
    _check_files(svg, png, force)
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        found = attention_captures.read(project.pool, capture)
        if layer is None:
            _show_heads(invocation, found)
            return
        if query is not None and number is not None:
            _show_query(invocation, found, found.head(layer, number), query, top or TOP)
        other = attention_captures.read(project.pool, minus) if minus is not None else None
        if query is None or svg or png:
            drawn = drawing.drawing(found, layer, number, other)
            if svg or png:
                drawing.write(invocation, drawn, svg=svg, png=png)
            if query is None and (not (svg or png) or invocation.output == "json"):
                drawing.show(invocation, drawn)


def _check_usage(
    layer: int | None,
    number: int | None,
    minus: str | None,
    query: int | None,
    top: int | None,
    *,
    draws: bool,
) -> None:
    if layer is None and (number is not None or minus is not None or query is not None or draws):
        raise UsageError(
            "of which layer?", hint="write --layer LAYER, and --head HEAD for one head"
        )
    if query is not None and number is None:
        raise UsageError("a query is one of a head", hint="write --head HEAD too")
    if query is not None and minus is not None:
        raise UsageError("`--minus` draws, and `--query` does not", hint="leave one of them out")
    if query is None and top is not None:
        raise UsageError("`--top` counts the keys of one query", hint="write --query PLACE too")


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
    refuse_existing(svg, png, force=force)


def _show_heads(invocation: Invocation, found: Attention) -> None:
    from arc_halo.cli.attention import telling
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
    title = f"{telling.title(found)}, {found.about.token_count} tokens"
    render(
        invocation,
        text=lambda: invocation.console.print(f"{title}\n\n{table(header, rows)}"),
        json=lambda: as_json(facts(found.about) | {"heads": [facts(each) for each in found.heads]}),
        markdown=lambda: f"{title}\n\n{markdown_table(header, rows)}",
    )


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
    title = (
        f"{telling.title(found)}, {found.about.token_count} tokens, layer {head.layer}, "
        f"head {head.head}, query {place} {shown(tokens[place])!r}"
    )
    note = (
        f"entropy {head.entropy[place]:.3f}, sink {head.sink_mass[place]:.3f}, "
        f"peak {head.peak[place]:.3f}"
    )
    render(
        invocation,
        text=lambda: invocation.console.print(f"{title}\n{note}\n\n{table(header, rows)}"),
        json=lambda: as_json(
            {
                "capture": str(found.about.id),
                "layer": head.layer,
                "tokens": tokens,
                **telling.head_facts(head),
                "query": place,
                "row": telling.numbers(row[list(seen)]),
            }
        ),
        markdown=lambda: f"{title}\n{note}\n\n{markdown_table(header, rows)}",
    )
