"""`arc-halo cache stats`: how full the KV cache is, and what it is good for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.console import printable
from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.telling import facts
from arc_halo.sizes import format_count, format_size

if TYPE_CHECKING:
    from arc_halo.store.kv_cache_reading import Usage

HEADER = (
    "model", "tenant", "blocks", "held", "pinned", "lookups", "hits", "tokens had", "refused",
    "damaged",
)  # fmt: skip


@click.command("stats")
@click.pass_obj
def stats(invocation: Invocation) -> None:
    """Show what the KV cache holds of each model and tenant, and how often it was of use.

    A lookup is a hit when it found at least one block; `tokens had` is the part of all tokens
    asked for that were there. Blocks are refused where budget, quota or queue had no place, and
    damaged ones were treated as not there. Counters begin with the database, and stay when it
    crashes, which empties the cache. What captures of activations and attention take is told as
    well.

    \b
    Examples:
      arc-halo cache stats
      arc-halo cache stats --output json
    """
    from arc_halo.inference.policies import kv_policy
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import activations, attention
    from arc_halo.store import kv_cache_reading as reading

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = reading.usage(conn)
            written, pinned = reading.written_bytes(conn)
            budget = kv_policy(conn).budget_bytes
            captured = activations.usage(conn)
            captures, capture_bytes = attention.usage(conn)
    rows = [_row(each) for each in found]
    summary = "\n".join(
        [
            _summary(found, written, pinned, budget),
            (
                f"Activations: {format_count(captured.entries, 'tensor')} of "
                f"{format_size(captured.size_bytes)}, found {format_count(captured.hits, 'time')}."
            ),
            f"Attention: {format_count(captures, 'capture')} of {format_size(capture_bytes)}.",
        ]
    )
    render(
        invocation,
        text=lambda: invocation.console.print(
            f"{table(HEADER, rows)}\n\n{summary}" if rows else summary
        ),
        json=lambda: as_json(
            {
                "written_bytes": written,
                "pinned_bytes": pinned,
                "budget_bytes": budget,
                "models": [facts(each) for each in found],
                "activations": facts(captured),
                "attention": {"captures": captures, "size_bytes": capture_bytes},
            }
        ),
        markdown=lambda: f"{markdown_table(HEADER, rows)}\n\n{summary}",
    )


def _row(each: Usage) -> tuple[str, ...]:
    return (
        printable(each.model, one_line=True) or each.weights_root.hex()[:12],
        printable(each.tenant, one_line=True),
        f"{each.blocks:,}",
        format_size(each.held_bytes),
        format_size(each.pinned_bytes) if each.pinned_bytes else "-",
        f"{each.lookups:,}",
        share(each.hits, each.lookups),
        share(each.hit_tokens, each.asked_tokens),
        f"{each.refused_blocks:,}",
        f"{each.damaged_blocks:,}",
    )


def share(part: int, whole: int) -> str:
    """A part in per cent; `-` of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _summary(found: list[Usage], written: int, pinned: int, budget: int) -> str:
    blocks = format_count(sum(each.blocks for each in found), "block")
    held = format_size(sum(each.held_bytes for each in found))
    return (
        f"Keys and values: {blocks} of {held}; {format_size(written)} count against the budget of "
        f"{format_size(budget)}, {format_size(pinned)} of them pinned."
    )
