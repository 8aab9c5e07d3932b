"""`arc-halo attention rm`: captures that go."""

from __future__ import annotations

import click

from arc_halo.cli.invocation import Invocation, render


@click.command("rm")
@click.argument("captures", nargs=-1, required=True)
@click.pass_obj
def rm(invocation: Invocation, captures: tuple[str, ...]) -> None:
    """Delete CAPTURES of attention, all of them or none.

    \b
    Examples:
      arc-halo attention rm prompt-1
      arc-halo attention rm 0f3a91 7be2c4 --output json
    """
    from arc_halo.inference.attention import find
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import attention

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn, conn.transaction():
            ids = list(dict.fromkeys(find(conn, each) for each in captures))
            attention.delete(conn, ids)
    gone = ", ".join(map(str, ids))
    render(
        invocation,
        text=lambda: invocation.console.print(f"deleted {gone}"),
        json=lambda: as_json({"deleted": list(map(str, ids))}),
        markdown=lambda: f"deleted {gone}",
    )
