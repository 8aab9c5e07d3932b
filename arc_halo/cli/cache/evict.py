"""`arc-halo cache evict` and `clear`: a part of the KV cache goes, or all of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from arc_halo.inference.housekeeping import Eviction


@click.command("evict")
@click.option("--model", metavar="MODEL", help="Of this model.")
@click.option("--tenant", metavar="TENANT", help="Of this tenant.")
@click.option("--idle", metavar="TIME", help="Unused for so long: 90m, 24h, 7d, 2w.")
@click.option("--pinned", is_flag=True, help="Those that are pinned, too.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and let nothing go.")
@click.option("--yes", is_flag=True, help="Let what is pinned go without asking.")
@click.pass_obj
def evict(
    invocation: Invocation,
    model: str | None,
    tenant: str | None,
    idle: str | None,
    pinned: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Let blocks go that meet every condition given; at least one is. What is pinned stays, unless
    `--pinned` is given, which says how much would go and asks first.

    The cache keeps to its budget by itself. This is for a model that is retired, a tenant that
    left, or prompts that must not be kept. What goes is computed again when it is asked for. Where
    nothing is left of a tenant its counters go, too, unless `--idle` is given.

    \b
    Examples:
      arc-halo cache evict --model story@1.0.0
      arc-halo cache evict --tenant acme --pinned --dry-run
      arc-halo cache evict --idle 7d
    """
    from arc_halo.cli.cache.selecting import roots_of
    from arc_halo.cli.tensors.gc import parse_grace
    from arc_halo.inference import housekeeping

    if model is None and tenant is None and idle is None:
        raise UsageError(
            "nothing says what is to go",
            hint="give `--model`, `--tenant` or `--idle`; `arc-halo cache clear` empties it",
        )
    period = None if idle is None else parse_grace(idle)
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            roots = roots_of(conn, model)
            find = partial(
                housekeeping.evict, tenant=tenant, roots=roots, idle=period, pinned=pinned
            )
            done = find(conn, dry_run=dry_run or pinned)
        if pinned and not dry_run:
            if done.blocks and not yes:
                _confirm(invocation, f"let {_what(done)} go, pinned ones too")
            with project.connection() as conn:
                done = find(conn)
    _render(invocation, done, is_done=not dry_run)


@click.command("clear")
@click.option("--dry-run", is_flag=True, help="Say what would go, and let nothing go.")
@click.option("--yes", is_flag=True, help="Empty it without asking.")
@click.pass_obj
def clear(invocation: Invocation, dry_run: bool, yes: bool) -> None:
    """Empty the KV cache, pinned prompts, counters and all.

    It says how much would go and asks first. Engines at work go on, and fill it again.

    \b
    Examples:
      arc-halo cache clear --dry-run
      arc-halo cache clear --yes
    """
    from arc_halo.inference import housekeeping

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            done = housekeeping.clear(conn, dry_run=True)
        if not dry_run:
            if not yes:
                _confirm(invocation, f"empty the KV cache of {_what(done)}, and its counters")
            with project.connection() as conn:
                done = housekeeping.clear(conn)
    _render(invocation, done, is_done=not dry_run)


def _confirm(invocation: Invocation, deed: str) -> None:
    if not invocation.console.is_interactive:
        raise RefusedError(
            f"this would {deed}, and nobody can be asked",
            hint="if that is what you want, say `--yes`",
            code="AH054",
        )
    if not invocation.console.confirm(f"{deed[0].upper()}{deed[1:]}?"):
        raise RefusedError("nothing was changed", code="AH054")


def _render(invocation: Invocation, done: Eviction, *, is_done: bool) -> None:
    from dataclasses import asdict

    from arc_halo.reconcile.report import as_json

    sentence = f"{_what(done)} {'went' if is_done else 'would go'}."
    render(
        invocation,
        text=lambda: invocation.console.print(sentence),
        json=lambda: as_json({**asdict(done), "is_done": is_done}),
        markdown=lambda: sentence,
    )


def _what(done: Eviction) -> str:
    from arc_halo.sizes import format_count, format_size

    return f"{format_count(done.blocks, 'block')} of {format_size(done.size_bytes)}"
