"""`arc-halo training sync`: points that waited on the local disk, written to the database."""

from __future__ import annotations

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table


@click.command("sync")
@click.pass_obj
def sync(invocation: Invocation) -> None:
    """Write what sessions of this project had to leave on the local disk.

    While the database is away, a session keeps its points in .arc-halo/training of the project, and
    writes them when it is back. Where the training ended before, this does. Points that were
    recorded since are not replaced; sessions that are at work are left to their programs, and those
    that the database does not know stay where they are.

    \b
    Example:
      arc-halo training sync
    """
    from arc_halo.api.training import Training
    from arc_halo.reconcile.report import as_json

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        written = Training(project).sync()
    rows = [(str(session), str(count)) for session, count in written.items()]
    header = ("session", "points")
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(header, rows) if rows else "Nothing waits on the local disk."
        ),
        json=lambda: as_json({"sessions": [{"id": s, "points": int(n)} for s, n in rows]}),
        markdown=lambda: markdown_table(header, rows),
    )
