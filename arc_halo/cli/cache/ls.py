"""`arc-halo cache ls`: the prompts that are in the KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.console import printable
from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.limiting import limit_option, tell_of_more
from arc_halo.cli.telling import facts, moment, number

if TYPE_CHECKING:
    from arc_halo.store.kv_cache_reading import PrefixRow

HEADER = (
    "block", "model", "weights", "tenant", "tokens", "codec", "error", "uses", "used", "pinned",
)  # fmt: skip


@click.command("ls")
@click.option("--model", metavar="MODEL", help="Only of this model.")
@click.option("--tenant", metavar="TENANT", help="Only of this tenant.")
@limit_option("those used last")
@click.pass_obj
def ls(invocation: Invocation, model: str | None, tenant: str | None, limit: int) -> None:
    """List the prompts whose keys and values are kept, those that were used last first. What is
    past its time to live is no longer found, and not listed, unless it is pinned.

    Each is named by its last block, and has as many tokens as stand before that block's end.
    `error` is that of `int8`, the others are lossless.

    \b
    Examples:
      arc-halo cache ls
      arc-halo cache ls --model story --tenant acme
      arc-halo cache ls --limit 500 --output json
    """
    from arc_halo.cli.cache.selecting import roots_of
    from arc_halo.plain import check_texts
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import kv_cache_reading as reading

    check_texts(tenant=tenant)
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = reading.prefixes(
                conn, tenant=tenant, roots=roots_of(conn, model), limit=limit + 1
            )
    prefixes = found[:limit]
    rows = [_row(each) for each in prefixes]
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(HEADER, rows) if rows else "Nothing is in the KV cache that fits."
        ),
        json=lambda: as_json({"prefixes": [facts(each) for each in prefixes]}),
        markdown=lambda: markdown_table(HEADER, rows),
    )
    tell_of_more(invocation, found, limit)


def _row(each: PrefixRow) -> tuple[str, ...]:
    label = printable(each.label, one_line=True) if each.label else "yes"
    return (
        each.block_key.hex()[:12],
        printable(each.model, one_line=True) or "-",
        each.weights_root.hex()[:12],
        printable(each.tenant, one_line=True) or "-",
        f"{each.tokens:,}",
        each.codec,
        number(each.error) if each.error is not None else "",
        f"{each.hit_count:,}",
        moment(each.last_used_at),
        label if each.is_pinned else "",
    )
