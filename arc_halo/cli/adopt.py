"""`arc-halo adopt`: take over what nobody manages, or another project."""

from __future__ import annotations

import click

from arc_halo.cli.invocation import Invocation, render


@click.command("adopt")
@click.argument("address")
@click.option("--yes", is_flag=True, help="Take it from another project, too.")
@click.pass_obj
def adopt(invocation: Invocation, address: str, yes: bool) -> None:
    """Make this project the owner of a resource that the manifest declares and the database has.

    Its rows stay as they are; what the manifest says otherwise is shown by the next plan. Nothing
    is taken from another project without `--yes`. Of what is the project's already there is nothing
    to do.

    \b
    Examples:
      arc-halo adopt model/poet@1.0.0
      arc-halo adopt reactor/story --yes
    """
    from arc_halo.reconcile.report import as_json

    with invocation.open() as project:
        done = project.adopt(address, may_take=yes)
        name = project.head.project
    was = f"was of the project {done.owner!r}" if done.owner else "was nobody's"
    text = f"< {done.key} is of {name} now, and {was}: revision {done.revision}."
    if not done.is_new:
        text = f"Nothing to do: {done.key} is of {name} already."
    facts = {
        "address": str(done.key),
        "project": name,
        "owner_before": done.owner,
        "revision": done.revision,
        "has_changed": done.is_new,
    }
    render(
        invocation,
        text=lambda: invocation.console.print(text, "create"),
        json=lambda: as_json(facts),
        markdown=lambda: text,
    )
