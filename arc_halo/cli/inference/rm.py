"""`arc-halo inference rm`: sessions are deleted, with all that they recorded."""

from __future__ import annotations

import click

from arc_halo.cli.inference import going
from arc_halo.cli.invocation import Invocation


@click.command("rm")
@click.argument("sessions", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.pass_obj
def rm(invocation: Invocation, sessions: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    """Delete SESSIONS, with what their requests took and the attention captured in them.

    It lists what would go and asks first. A session that a program is at work on is refused.

    \b
    Examples:
      arc-halo inference rm 0f6e2a --dry-run
      arc-halo inference rm 0f6e2a 7be2c4 --yes
    """
    from arc_halo.inference import deleting, reading

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            ids = list(dict.fromkeys(reading.session(conn, each).id for each in sessions))
            told = deleting.look(conn, ids)
        if not dry_run:
            deleting.check(told)
            if not yes:
                going.confirm(invocation, told)
            with project.connection() as conn:
                told = deleting.delete(conn, ids)
    going.tell(invocation, told, is_done=not dry_run)
