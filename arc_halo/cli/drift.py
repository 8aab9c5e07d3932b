"""`arc-halo drift`: what was changed outside of apply."""

from __future__ import annotations

from functools import partial

import click

from arc_halo.cli.cutting import Cut, cut_options
from arc_halo.cli.invocation import Invocation, render

DRIFT_FOUND = 2


@click.command("drift")
@click.option("--no-schema", is_flag=True, help="Leave the schema out: tables, indexes, views.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 even when there is drift.")
@cut_options
@click.pass_context
def drift(context: click.Context, no_schema: bool, exit_zero: bool, cut: Cut) -> None:
    """Compare the database with what the last apply left in it, and change nothing.

    Every row that the project manages is compared, field by field, and the schema with what the
    migrations made. Only the project's name is read from the manifest. Exits with 2 when anything
    differs.

    \b
    Examples:
      arc-halo drift
      arc-halo drift --output json
      arc-halo drift --output markdown > drift.md || gh issue create --body-file drift.md
    """
    invocation: Invocation = context.obj
    from arc_halo.reconcile.drift import drift_json, drift_lines, drift_markdown
    from arc_halo.reconcile.report import as_json

    with invocation.open() as project:
        found = project.drift(with_schema=not no_schema)
    render(
        invocation,
        text=lambda: invocation.console.lines(drift_lines(found)),
        json=lambda: as_json(drift_json(found)),
        markdown=lambda: cut.markdown(partial(drift_markdown, found, environment=project.env)),
    )
    if found.is_found and not exit_zero:
        context.exit(DRIFT_FOUND)
