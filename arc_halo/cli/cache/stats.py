"""`arc-halo cache stats`: how full the caches are, and what that of keys and values is good for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.console import printable
from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.telling import facts
from arc_halo.sizes import format_count, format_size, manifest_duration, manifest_size

if TYPE_CHECKING:
    from arc_halo.inference.fullness import Fullness
    from arc_halo.store.kv_cache_reading import Usage

CACHES = ("cache", "holds", "found", "takes", "budget", "used", "ttl")
MODELS = (
    "model", "weights", "tenant", "blocks", "held", "quota", "pinned", "lookups", "hits",
    "tokens had", "refused", "damaged",
)  # fmt: skip


@click.command("stats")
@click.option("--all", "all_", is_flag=True, help="Rows of zeros, too.")
@click.pass_obj
def stats(invocation: Invocation, all_: bool) -> None:
    """Show how full the caches of inference are, and of the KV cache what is held of each model
    and tenant, and how often it was of use.

    A lookup is a hit when it found at least one block; `tokens had` is the part of all tokens
    asked for that were there. Of its `quota` a tenant has used so much with all models. Blocks are
    refused where budget, quota or queue had no place, and damaged ones were treated as not there.
    Counters begin with the database or the last `arc-halo cache clear`, and stay when the database
    crashes, which empties the cache.

    \b
    Examples:
      arc-halo cache stats
      arc-halo cache stats --all --output json
    """
    from arc_halo.inference.fullness import fullness
    from arc_halo.inference.policies import kv_policy
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import kv_cache_reading as reading

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            usage = reading.usage(conn)
            caches = fullness(conn, usage)
            policy = kv_policy(conn)
    told = [each for each in usage if all_ or not _is_zero(each)]
    rows = []
    for each in told:
        held = sum(other.held_bytes for other in usage if other.tenant == each.tenant)
        rows.append(_row(each, held, policy.quota_of(each.tenant)))
    tables = [(CACHES, [_cache_row(each) for each in caches]), *([(MODELS, rows)] if rows else [])]
    render(
        invocation,
        text=lambda: invocation.console.print("\n\n".join(table(*each) for each in tables)),
        json=lambda: as_json(
            {
                "caches": [facts(each) for each in caches],
                "models": [
                    {**facts(each), "quota_bytes": policy.quota_of(each.tenant)} for each in told
                ],
            }
        ),
        markdown=lambda: "\n\n".join(markdown_table(*each) for each in tables),
    )
    if len(told) < len(usage):
        left = format_count(len(usage) - len(told), "row")
        invocation.console.note(f"{left} of zeros left out: `--all` lists them")


def _is_zero(each: Usage) -> bool:
    return not (each.blocks or each.lookups or each.refused_blocks or each.damaged_blocks)


def _cache_row(each: Fullness) -> tuple[str, ...]:
    return (
        each.cache,
        format_count(each.holds, each.unit),
        "-" if each.found is None else format_count(each.found, "time"),
        format_size(each.taken_bytes),
        "-" if each.budget_bytes is None else manifest_size(each.budget_bytes),
        share(each.taken_bytes, each.budget_bytes or 0),
        "-" if each.ttl_seconds is None else manifest_duration(round(each.ttl_seconds)),
    )


def _row(each: Usage, tenant_bytes: int, quota: int | None) -> tuple[str, ...]:
    return (
        printable(each.model, one_line=True) or "-",
        each.weights_root.hex()[:12],
        printable(each.tenant, one_line=True) or "-",
        f"{each.blocks:,}",
        format_size(each.held_bytes),
        "-" if quota is None else f"{share(tenant_bytes, quota)} of {manifest_size(quota)}",
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
