"""`arc-halo activations ls`: of which models and inputs there are activations."""

from __future__ import annotations

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.limiting import limit_option, tell_of_more

HEADER = ("id", "model", "captured", "used", "layers", "size", "hits")


@click.command("ls")
@click.option(
    "--model", metavar="MODEL", help="Only of this: a name, name@version, or a root's beginning."
)
@limit_option("the newest")
@click.pass_obj
def ls(invocation: Invocation, model: str | None, limit: int) -> None:
    """List captures of activations, the newest first.

    A model is told by the names that its weights are registered by, or else by their root.

    \b
    Examples:
      arc-halo activations ls
      arc-halo activations ls --model story@1.0.0 --output json
    """
    from arc_halo.cli import telling
    from arc_halo.inference import activation_captures
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_size

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = activation_captures.listed(conn, model=model, limit=limit + 1)
    rows = [
        (
            telling.short(each.id),
            telling.model(each.model, each.weights_root),
            telling.moment(each.captured_at),
            telling.moment(each.last_used_at),
            str(each.layer_count),
            format_size(each.size_bytes),
            f"{each.hit_count:,}",
        )
        for each in found[:limit]
    ]
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(HEADER, rows) if rows else "No activations are captured that fit."
        ),
        json=lambda: as_json({"captures": [telling.facts(each) for each in found[:limit]]}),
        markdown=lambda: markdown_table(HEADER, rows),
    )
    tell_of_more(invocation, found, limit)
