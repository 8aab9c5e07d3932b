"""`arc-halo attention rm`: captures that go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.errors import UsageError

if TYPE_CHECKING:
    from arc_halo.store.attention_reading import CaptureRow


@click.command("rm")
@click.argument("captures", nargs=-1)
@click.option("--label", metavar="LABEL", help="All that are called so.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.pass_obj
def rm(invocation: Invocation, captures: tuple[str, ...], label: str | None, dry_run: bool) -> None:
    """Delete CAPTURES of attention, all of them or none.

    A label that several have is refused: give their ids, or `--label` for all of them.

    \b
    Examples:
      arc-halo attention rm prompt-1
      arc-halo attention rm 0f3a91 7be2c4 --output json
      arc-halo attention rm --label prompt-1 --dry-run
    """
    from arc_halo.inference import attention_captures
    from arc_halo.reconcile.report import as_json

    if not captures and label is None:
        raise UsageError("nothing says what is to go", hint="give captures, or `--label`")
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = attention_captures.delete(conn, captures, label=label, dry_run=dry_run)
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
    from arc_halo.cli.console import printable
    from arc_halo.sizes import format_count, format_size

    label = f" {printable(capture.label, one_line=True)}" if capture.label else ""
    heads = format_count(capture.head_count, "head")
    return f"{capture.id}{label}: {heads}, {format_size(capture.size_bytes)}"
