"""`arc-halo cache verify`: is every byte of the KV cache what it was."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from arc_halo.cli.console import printable
from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.telling import facts
from arc_halo.errors import CorruptChunkError
from arc_halo.sizes import format_count

if TYPE_CHECKING:
    from arc_halo.inference.housekeeping import Verification

HEADER = ("block", "tenant", "place", "problem")
SHOWN = 10
"""Damaged blocks that are listed for people."""


@click.command("verify")
@click.option(
    "--sample", type=click.IntRange(min=1), metavar="N", help="So many blocks at random, not all."
)
@click.option("--drop", is_flag=True, help="Let damaged blocks go, and what follows them.")
@click.pass_obj
def verify(invocation: Invocation, sample: int | None, drop: bool) -> None:
    """Read blocks of the KV cache again and compare their digests.

    No engine is ever given a damaged block: it is a miss, and lets it go. This finds those that
    nobody asked for since. Exits 1 when there is one, unless it was let go. That the values are
    those the model would compute is asked of the model: `TransformersCache.verify` in Python.

    \b
    Examples:
      arc-halo cache verify
      arc-halo cache verify --sample 1000
      arc-halo cache verify --drop --output json
    """
    from arc_halo.inference import housekeeping
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import kv_cache_reading as reading

    dropped = None
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            size = sum(each.held_bytes for each in reading.usage(conn))
            whole = sample is None
            with invocation.console.task("verify", size) if whole else nullcontext() as advance:
                done = housekeeping.verify(conn, sample=sample, advance=advance)
            if drop and done.damaged:
                dropped = housekeeping.drop_damaged(conn, done.damaged)
    rows = [
        (each.key.hex()[:12], printable(each.tenant, one_line=True), str(each.index), each.problem)
        for each in done.damaged
    ]
    summary = _summary(done, None if dropped is None else dropped.blocks)
    shown = rows[:SHOWN]
    if len(rows) > SHOWN:
        summary = f"… and {len(rows) - SHOWN:,} more; `--output json` lists all.\n\n{summary}"
    render(
        invocation,
        text=lambda: invocation.console.print(
            f"{table(HEADER, shown)}\n\n{summary}" if shown else summary
        ),
        json=lambda: as_json(
            {
                "blocks": done.blocks,
                "size_bytes": done.size_bytes,
                "damaged": [facts(each) for each in done.damaged],
                "dropped_blocks": None if dropped is None else dropped.blocks,
            }
        ),
        markdown=lambda: f"{markdown_table(HEADER, shown)}\n\n{summary}",
    )
    if done.damaged and dropped is None:
        raise CorruptChunkError(
            f"{format_count(len(done.damaged), 'block')} of the KV cache are not what was stored",
            hint="no engine is given them; `--drop` lets them go",
        )


def _summary(done: Verification, dropped: int | None) -> str:
    from arc_halo.sizes import format_size

    text = f"{format_count(done.blocks, 'block')} of {format_size(done.size_bytes)} looked at: "
    if not done.damaged:
        return text + "each has its digest."
    text += f"{len(done.damaged)} damaged"
    if dropped is None:
        return f"{text}."
    return f"{text}; {format_count(dropped, 'block')} went, with those that follow."
