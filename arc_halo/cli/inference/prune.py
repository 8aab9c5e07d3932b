"""`arc-halo inference prune`: what is older than that goes."""

from __future__ import annotations

from functools import partial

import click

from arc_halo.cli.inference import going
from arc_halo.cli.invocation import Invocation


@click.command("prune")
@click.option(
    "--older-than",
    metavar="TIME",
    required=True,
    help="Over for so long: 90m, 24h, 30d; 0 for all that are over.",
)
@click.option(
    "--model", metavar="MODEL", help="Only of this model: name, name@version or name:alias."
)
@click.option("--tenant", metavar="TENANT", help="Only on behalf of this one.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.pass_obj
def prune(
    invocation: Invocation,
    older_than: str,
    model: str | None,
    tenant: str | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete sessions that have been over for so long, with all that they recorded.

    A session that a program is at work on stays: of it goes what requests took that are as old, and
    its counts stay. It lists what would go and asks first.

    \b
    Examples:
      arc-halo inference prune --older-than 30d --dry-run
      arc-halo inference prune --older-than 30d --yes
      arc-halo inference prune --older-than 24h --tenant acme
    """
    from arc_halo.cli.tensors.gc import parse_grace
    from arc_halo.inference import deleting

    age = parse_grace(older_than)
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        find = partial(deleting.prune, older_than=age, model=model, tenant=tenant)
        with project.connection() as conn:
            told = find(conn, dry_run=True)
        is_done = not dry_run and bool(told.sessions or told.trimmed)
        if is_done:
            if not yes:
                going.confirm(invocation, told)
            with project.connection() as conn:
                told = find(conn)
    going.tell(invocation, told, is_done=is_done)
