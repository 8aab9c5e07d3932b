"""`arc-halo attention ls`: what attention was captured."""

from __future__ import annotations

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.limiting import limit_option, tell_of_more


@click.command("ls")
@click.option("--label", metavar="LABEL", help="Only those that are called so.")
@click.option(
    "--model", metavar="MODEL", help="Only of this: a name, name@version, or a root's beginning."
)
@limit_option("the newest")
@click.pass_obj
def ls(invocation: Invocation, label: str | None, model: str | None, limit: int) -> None:
    """List captures of attention, the newest first.

    A model is told by the names that its weights are registered by, or else by their root.

    \b
    Examples:
      arc-halo attention ls
      arc-halo attention ls --model story --label prompt-1 --output json
    """
    from arc_halo.cli import telling
    from arc_halo.cli.attention.telling import beginning
    from arc_halo.inference import attention_captures
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_size

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = attention_captures.listed(conn, label=label, model=model, limit=limit + 1)
    header = ("id", "label", "model", "captured", "tokens", "layers", "heads", "size", "text")
    rows = [
        (
            telling.short(each.id),
            each.label or "-",
            telling.model(each.model, each.weights_root),
            telling.moment(each.captured_at),
            str(each.token_count),
            str(each.layer_count),
            str(each.head_count),
            format_size(each.size_bytes),
            beginning(each),
        )
        for each in found[:limit]
    ]
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(header, rows) if rows else "No attention is captured that fits."
        ),
        json=lambda: as_json({"captures": [telling.facts(each) for each in found[:limit]]}),
        markdown=lambda: markdown_table(header, rows),
    )
    tell_of_more(invocation, found, limit)
