"""`arc-halo tensors recode`: stored chunks to another codec, or to another place."""

from __future__ import annotations

import dataclasses

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.cli.tensors.models import weights_of
from arc_halo.errors import UsageError


@click.command("recode")
@click.argument("model", required=False)
@click.option(
    "--codec",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="The codec; `auto` for the smallest of a dtype's usual ones, `keep` to move bodies only.",
)
@click.option("--delta-from", metavar="MODEL", help="Keep deltas against that model's tensors.")
@click.option("--into-database", is_flag=True, help="Bodies go there, out of the body store.")
@click.option("--dry-run", is_flag=True, help="Say what it would come to, and write nothing.")
@click.pass_obj
def recode(
    invocation: Invocation,
    model: str | None,
    codec: str,
    delta_from: str | None,
    into_database: bool,
    dry_run: bool,
) -> None:
    """Store the chunks of MODEL, or all, with another codec.

    Digests and roots stay: they are of the raw bytes. Bodies go where the project keeps them
    (`storage.bodies`). It may be interrupted, and is then simply run again.

    \b
    Examples:
      arc-halo tensors recode --dry-run
      arc-halo tensors recode story --codec zstd
      arc-halo tensors recode poet --delta-from base
      arc-halo tensors recode --codec keep        move bodies to where the project keeps them
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_count, format_size
    from arc_halo.store import recoding as sql
    from arc_halo.weights import recoding
    from arc_halo.weights.store import check_needs_base

    if delta_from is not None and model is None:
        raise UsageError("`--delta-from` needs a model", hint="arc-halo tensors recode MODEL …")
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        if codec not in (recoding.KEEP, "auto"):
            check_needs_base(project.weights.find_codec(codec), delta_from is not None)
        set_id = root = None
        with project.connection() as conn:
            size_bytes = sql.raw_bytes(conn)
            if model is not None:
                record, set_id = weights_of(conn, model)
                size_bytes = record.size_bytes or 0
            if delta_from is not None:
                root = bytes(weights_of(conn, delta_from)[0].root or b"")
        with invocation.console.task(f"recode {model or ''}".rstrip(), size_bytes) as advance:
            done = recoding.recode(
                project.weights,
                codec=codec,
                weight_set_id=set_id,
                delta_from=root,
                into_database=into_database,
                dry_run=dry_run,
                advance=advance,
            )
    text = (
        f"{'Would recode' if dry_run else 'Recoded'} {done.changed:,} of "
        f"{format_count(done.chunks, 'chunk')}"
    )
    if done.changed:
        before, after = format_size(done.before_bytes), format_size(done.after_bytes)
        text += f": {before} stored as {after}"
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json({**dataclasses.asdict(done), "dry_run": dry_run}),
        markdown=lambda: text,
    )
