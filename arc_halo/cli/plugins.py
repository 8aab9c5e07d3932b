"""`arc-halo plugins`: who provides what."""

from __future__ import annotations

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table


@click.command("plugins")
@click.option("--hooks", is_flag=True, help="List the hooks a plugin may implement instead.")
@click.pass_obj
def plugins(invocation: Invocation, hooks: bool) -> None:
    """List the strategies, codecs, formats, body stores, executors and runners that are loaded.

    \b
    Examples:
      arc-halo plugins
      arc-halo plugins --hooks
    """
    from arc_halo.reconcile.report import as_json

    header, rows = _hooks() if hooks else _provided(invocation)
    facts = [dict(zip(header, row, strict=True)) for row in rows]
    render(
        invocation,
        text=lambda: invocation.console.print(table(header, rows)),
        json=lambda: as_json({"hooks" if hooks else "plugins": facts}),
        markdown=lambda: markdown_table(header, rows),
    )


def _provided(invocation: Invocation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    manager = invocation.open(needs_manifest=False).plugins
    indexes = (
        ("strategy", manager.strategies),
        ("codec", manager.codecs),
        ("format", manager.formats),
        ("body store", manager.body_stores),
        ("executor", manager.executors),
        ("runner", manager.runners),
        ("predictor", manager.predictors),
    )
    rows: list[tuple[str, ...]] = [
        (kind, name, provided.version, str(provided.provider), provided.item.summary)
        for kind, index in indexes
        for name, provided in index.items()
    ]
    return ("kind", "name", "version", "provider", "summary"), rows


def _hooks() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    from arc_halo import hookspecs

    rows: list[tuple[str, ...]] = [
        (name, (function.__doc__ or "").strip().splitlines()[0])
        for name, function in vars(hookspecs).items()
        if name.startswith("arc_halo_")
    ]
    return ("hook", "what it does"), rows
