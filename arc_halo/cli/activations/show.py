"""`arc-halo activations show`: the layers of a capture in figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.errors import NotFoundError

if TYPE_CHECKING:
    from arc_halo.inference.activation_captures import (
        ActivationCapture,
        CapturedLayer,
        Statistics,
    )
    from arc_halo.types import JsonObject

HEADER = ("layer", "positions", "dtype", "shape", "mean", "std", "min", "max", "norm")
FEW = 4
"""Positions that are told one by one."""


@click.command("show")
@click.argument("capture")
@click.option(
    "--layer", "pattern", metavar="PATTERN", default="*", help="Only these, with * and ?."
)
@click.pass_obj
def show(invocation: Invocation, capture: str, pattern: str) -> None:
    """Show CAPTURE: what each layer gave, in figures over all of its values.

    The values are read for that, layer by layer. It counts no hit.

    \b
    Examples:
      arc-halo activations show 3fa91c
      arc-halo activations show 3fa91c --layer '*.mlp' --output json
    """
    from fnmatch import fnmatchcase

    from arc_halo.cli import telling
    from arc_halo.inference import activation_captures
    from arc_halo.reconcile.report import as_json

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        found = activation_captures.read(project.weights, capture)
        wanted = [each for each in found.layers if fnmatchcase(each.name, pattern)]
        if not wanted:
            raise NotFoundError(
                f"nothing was captured of {pattern!r}",
                hint=f"there is {', '.join(each.name for each in found.layers[:8])}",
            )
        told = [(each, each.statistics()) for each in wanted]
    title = _title(found)
    rows = [_row(*each) for each in told]
    render(
        invocation,
        text=lambda: invocation.console.print(f"{title}\n\n{table(HEADER, rows)}"),
        json=lambda: as_json(
            telling.facts(found.about) | {"layers": [_facts(*each) for each in told]}
        ),
        markdown=lambda: f"{title}\n\n{markdown_table(HEADER, rows)}",
    )


def _title(found: ActivationCapture) -> str:
    from arc_halo.cli import telling
    from arc_halo.sizes import format_count, format_size

    about = found.about
    over = f", over at {telling.moment(about.expires_at)}" if about.expires_at else ""
    return (
        f"{about.id}, of {telling.model(about.model, about.weights_root)}, "
        f"{format_size(about.size_bytes)}, {format_count(about.hit_count, 'hit')}{over}"
    )


def _row(layer: CapturedLayer, statistics: Statistics) -> tuple[str, ...]:
    from arc_halo.cli.telling import number

    positions = layer.selection.positions
    if positions is None:
        shown = "all"
    else:
        listed = ", ".join(map(str, positions[:FEW]))
        shown = f"{listed}, … {positions[-1]}" if len(positions) > FEW else listed
    return (
        layer.name or "(the model)",
        shown,
        layer.dtype,
        "x".join(map(str, layer.shape)),
        *(number(getattr(statistics, name)) for name in ("mean", "std", "min", "max", "norm")),
    )


def _facts(layer: CapturedLayer, statistics: Statistics) -> JsonObject:
    from arc_halo.cli.telling import facts

    positions = layer.selection.positions
    return {
        "name": layer.name,
        "positions": None if positions is None else list(positions),
        "dtype": layer.dtype,
        "shape": list(layer.shape),
        "size_bytes": layer.size_bytes,
        "hit_count": layer.hit_count,
        **facts(statistics),
    }
