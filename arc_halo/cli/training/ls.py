"""`arc-halo training ls`: what sessions there are, and how far they are."""

from __future__ import annotations

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.limiting import limit_option, tell_of_more
from arc_halo.cli.telling import facts, moment, number, short

STATUSES = ("running", "paused", "completed", "failed", "crashed")


@click.command("ls")
@click.option("--model", metavar="MODEL", help="Only of this model: its name, or name@version.")
@click.option("--group", metavar="GROUP", help="Only of this group.")
@click.option("--tag", metavar="KEY[=VALUE]", help="Only those with this tag.")
@click.option("--status", type=click.Choice(STATUSES), help="Only those that are so.")
@click.option(
    "--name", "pattern", metavar="GLOB", help="Only those named so: * and ? stand for any."
)
@limit_option("the newest")
@click.pass_obj
def ls(
    invocation: Invocation,
    model: str | None,
    group: str | None,
    tag: str | None,
    status: str | None,
    pattern: str | None,
    limit: int,
) -> None:
    """List training sessions, the newest first.

    A running session that gave no sign of life for a minute is shown as crashed.

    \b
    Examples:
      arc-halo training ls
      arc-halo training ls --model story --status running
      arc-halo training ls --tag seed=1 --name 'night-*' --output json
    """
    from arc_halo.cli.training import telling
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_seconds
    from arc_halo.training import reading

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = reading.sessions(
                conn,
                model=model,
                group=group,
                tag=tag,
                status=status,
                name=pattern,
                limit=limit + 1,
            )
    sessions = found[:limit]
    header = ("id", "name", "model", "status", "step", "done", "loss", "began", "took")
    rows = [
        (
            short(each.id),
            each.name or "-",
            each.model,
            each.status,
            str(each.current_step),
            telling.progress(each),
            number(each.last_loss),
            moment(each.started_at),
            format_seconds(each.elapsed_seconds),
        )
        for each in sessions
    ]
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(header, rows) if rows else "No training session is recorded that fits."
        ),
        json=lambda: as_json({"sessions": [facts(each) for each in sessions]}),
        markdown=lambda: markdown_table(header, rows),
    )
    tell_of_more(invocation, found, limit)
