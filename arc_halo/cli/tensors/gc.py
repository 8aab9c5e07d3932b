"""`arc-halo tensors gc`: what nothing refers to any more is deleted."""

from __future__ import annotations

import dataclasses
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.errors import UsageError

if TYPE_CHECKING:
    from arc_halo.weights.collecting import Collected

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
MAX_DAYS = 36_500


@click.command("gc")
@click.option(
    "--grace",
    metavar="TIME",
    default="24h",
    show_default=True,
    help="Leave alone what was made, or found in use, since then (90m, 24h, 7d; 0 for nothing).",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option(
    "--batch",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="Rows that one transaction looks at.",
)
@click.pass_obj
def gc(invocation: Invocation, grace: str, dry_run: bool, batch: int) -> None:
    """Delete tensors and chunks that no model, history, checkpoint or live build refers to.

    A model's history keeps its last weight sets, 20 or what `settings.retain_revisions` says. It
    works in short transactions, imports may go on meanwhile, and an interrupted run is simply run
    again. What nothing refers to, but is younger than the grace, is told. PostgreSQL uses the freed
    space again once autovacuum has been there; `VACUUM FULL chunk_bodies` would return it to the
    disk.

    \b
    Examples:
      arc-halo tensors gc --dry-run
      arc-halo tensors gc
      arc-halo tensors gc --grace 7d --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.weights.collecting import collect, simulate

    wait = parse_grace(grace)
    too_young = 0
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        if dry_run:
            done = simulate(project.weights, grace=wait, retain_revisions=project.retain_revisions)
        else:
            with invocation.console.task("freed", 0) as advance:
                done = collect(
                    project.weights,
                    grace=wait,
                    batch=batch,
                    retain_revisions=project.retain_revisions,
                    tell=lambda what: invocation.console.note(f"looking at {what}"),
                    advance=advance,
                )
        if wait:
            free = simulate(
                project.weights, grace=timedelta(0), retain_revisions=project.retain_revisions
            )
            too_young = max(free.freed_bytes - dry_run * done.freed_bytes, 0)
    facts = {**dataclasses.asdict(done), "too_young_bytes": too_young, "dry_run": dry_run}
    render(
        invocation,
        text=lambda: invocation.console.print(
            _as_text(done, dry_run) + _told_young(too_young, grace.strip())
        ),
        json=lambda: as_json(facts),
        markdown=lambda: markdown_table(("what", "would go" if dry_run else "went"), _rows(done)),
    )


def parse_grace(text: str) -> timedelta:
    """`90m`, `24h`, `7d`, `1w`, `30s` or `0`. Raises `UsageError` for anything else."""
    match = re.fullmatch(r"(\d{1,9})([smhdw])|0", text.strip())
    if match is not None and match[1] is None:
        return timedelta(0)
    if match is not None:
        unit = timedelta(**{UNITS[match[2]]: 1})
        if int(match[1]) <= timedelta(days=MAX_DAYS) / unit:
            return int(match[1]) * unit
    raise UsageError(
        f"{text!r} is no period of time", hint="write 30s, 90m, 24h, 7d, 2w, or 0 for none"
    )


def _as_text(done: Collected, dry_run: bool) -> str:
    from arc_halo.sizes import format_size

    if not any(dataclasses.astuple(done)):
        return "Nothing to collect."
    listed = table(("what", "would go" if dry_run else "went"), _rows(done))
    if dry_run:
        return f"{listed}\n\n{format_size(done.freed_bytes)} would be freed. Nothing was deleted."
    text = f"{listed}\n\nFreed {format_size(done.freed_bytes)}"
    if done.bodies:
        text += ", without the bodies that no chunk named"
    return f"{text}. PostgreSQL uses its space again after its next vacuum."


def _told_young(size_bytes: int, grace: str) -> str:
    from arc_halo.sizes import format_size

    if not size_bytes:
        return ""
    return (
        f"\n{format_size(size_bytes)} that nothing refers to are younger than the grace of "
        f"{grace}: a later run takes them, or one with a shorter `--grace`."
    )


def _rows(done: Collected) -> list[tuple[str, str]]:
    from arc_halo.sizes import format_size

    counts = dataclasses.asdict(done)
    freed = counts.pop("freed_bytes")
    rows = [(name.replace("_", " "), f"{count:,}") for name, count in counts.items() if count]
    return [*rows, ("bytes", format_size(freed))]
