"""`arc-halo activations rm`: captures that go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, render

if TYPE_CHECKING:
    from arc_halo.store.activations_reading import CaptureRow


@click.command("rm")
@click.argument("captures", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.pass_obj
def rm(invocation: Invocation, captures: tuple[str, ...], dry_run: bool) -> None:
    """Delete CAPTURES of activations, all of them or none.

    `arc-halo tensors gc` gives their space back.

    \b
    Examples:
      arc-halo activations rm 3fa91c --dry-run
      arc-halo activations rm 3fa91c 7be2c4 --output json
    """
    from arc_halo.inference import activation_captures
    from arc_halo.reconcile.report import as_json

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = activation_captures.delete(conn, captures, dry_run=dry_run)
    verb = "would delete" if dry_run else "deleted"
    lines = [f"{verb} {_told(each)}" for each in found]
    render(
        invocation,
        text=lambda: invocation.console.print("\n".join(lines)),
        json=lambda: as_json(
            {
                "captures": [str(each.id) for each in found],
                "size_bytes": sum(each.size_bytes for each in found),
                "is_done": not dry_run,
            }
        ),
        markdown=lambda: "\n".join(f"- {line}" for line in lines),
    )


def _told(capture: CaptureRow) -> str:
    from arc_halo.sizes import format_count, format_size

    layers = format_count(capture.layer_count, "layer")
    return f"{capture.id}: {layers}, {format_size(capture.size_bytes)}"
