"""`arc-halo training export`: points as CSV or Parquet."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.cli.overwriting import refuse_existing
from arc_halo.errors import UsageError


@click.command("export")
@click.argument("sessions", nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    default="-",
    show_default=True,
    help="A .parquet, or CSV in any other; - is standard output.",
)
@click.option(
    "--metric", metavar="GLOB", default="*", help="Only these metrics: loss, eval/loss, grad*."
)
@click.option("--scope", metavar="SCOPE", help="Only this scope: train, eval, system.")
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
@click.pass_obj
def export(
    invocation: Invocation,
    sessions: tuple[str, ...],
    out: Path,
    metric: str,
    scope: str | None,
    force: bool,
) -> None:
    """Write the points of SESSIONS to a file, a row each.

    A forked session has its parent's points up to the step it was forked at. A file appears
    complete or not at all. Parquet needs pyarrow: the extra `parquet`.

    \b
    Examples:
      arc-halo training export night-3 -o night-3.csv
      arc-halo training export night-2 night-3 --metric loss -o losses.parquet
      arc-halo training export night-3 --scope eval | head
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_count
    from arc_halo.training import exporting

    is_stdout = str(out) == "-"
    if is_stdout and invocation.output != "text":
        raise UsageError(
            "points are written as CSV where no file is named", hint="name one with `--out FILE`"
        )
    if not is_stdout:
        refuse_existing(out, force=force)
    if exporting.is_parquet(out):
        exporting.check_parquet()
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            pages = exporting.pages(conn, sessions, metric=metric, scope=scope)
            if is_stdout:
                count = exporting.write_csv(pages, sys.stdout)
            else:
                count = exporting.write_file(pages, out)
    if not count:
        invocation.console.note("no point fits: there is nothing below the header", "warn")
    if is_stdout:
        return
    text = f"Exported {format_count(count, 'point')} to {out}"
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json({"file": str(out), "points": count}),
        markdown=lambda: text,
    )
