"""`arc-halo inference ls`: the sessions, the newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.limiting import limit_option, tell_of_more
from arc_halo.cli.telling import facts, moment, short

if TYPE_CHECKING:
    from arc_halo.store.inference_sessions import SessionRow

STATUSES = ("active", "completed", "failed", "crashed")
HEADER = ("id", "model", "tenant", "status", "requests", "failed", "generated", "began", "took")


@click.command("ls")
@click.option(
    "--model", metavar="MODEL", help="Only of this model: name, name@version or name:alias."
)
@click.option("--tenant", metavar="TENANT", help="Only on behalf of this one.")
@click.option("--status", type=click.Choice(STATUSES), help="Only those that are so.")
@limit_option("the newest")
@click.pass_obj
def ls(
    invocation: Invocation, model: str | None, tenant: str | None, status: str | None, limit: int
) -> None:
    """List inference sessions, the newest first.

    An active session that gave no sign of life for a minute is shown as crashed.

    \b
    Examples:
      arc-halo inference ls
      arc-halo inference ls --model story --status active
      arc-halo inference ls --tenant acme --output json
    """
    from arc_halo.inference import reading
    from arc_halo.reconcile.report import as_json

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = reading.sessions(
                conn, model=model, tenant=tenant, status=status, limit=limit + 1
            )
    sessions = found[:limit]
    rows = [_row(each) for each in sessions]
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(HEADER, rows) if rows else "No inference session is recorded that fits."
        ),
        json=lambda: as_json({"sessions": [facts(each) for each in sessions]}),
        markdown=lambda: markdown_table(HEADER, rows),
    )
    tell_of_more(invocation, found, limit)


def _row(session: SessionRow) -> tuple[str, ...]:
    from arc_halo.sizes import format_seconds

    return (
        short(session.id),
        session.model,
        session.tenant or "-",
        session.status,
        str(session.request_count),
        str(session.failed_count),
        str(session.generated_tokens),
        moment(session.started_at),
        format_seconds(session.elapsed_seconds),
    )
