"""`arc-halo import`: a file of weights made a model, without a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, render

if TYPE_CHECKING:
    from arc_halo.reconcile.registering import Registered


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "name", metavar="NAME@VERSION", required=True, help="The model it is to be.")
@click.option("--type", "model_type", metavar="TYPE", help="Its type; a new one is a transformer.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The file of its architecture; a new model takes the config.json beside FILE.",
)
@click.option("--codec", metavar="NAME", help="Store its chunks with this codec.")
@click.option("--delta-from", metavar="MODEL", help="Keep deltas against that model's tensors.")
@click.option("--format", "format_name", metavar="NAME", help="FILE's format, if its name lies.")
@click.option("--force", is_flag=True, help="Replace what a model of that name has.")
@click.pass_obj
def import_(
    invocation: Invocation,
    file: Path,
    name: str,
    model_type: str | None,
    config: Path | None,
    codec: str | None,
    delta_from: str | None,
    format_name: str | None,
    force: bool,
) -> None:
    """Make FILE's weights those of a model, which is registered if it is not there.

    FILE is a .safetensors, .bin, .pt or .pth file, the index of a sharded model, or a directory
    that holds one. The model belongs to no project, and no apply touches it. Weights it had stay
    in its history.

    \b
    Examples:
      arc-halo import model.safetensors --as story@1.0.0
      arc-halo import checkpoint.pt --as story@1.1.0 --config config.json --delta-from story@1.0.0
      arc-halo import out/ --as copy@1 --database-url embedded --output json
    """
    from arc_halo.api.models import Models
    from arc_halo.reconcile.report import as_json
    from arc_halo.tensors.digests import format_digest

    with invocation.open(needs_database=True) as project:
        if applied := project.migrate():
            invocation.console.note(f"migrated the database: {len(applied)} applied")
        done = Models(project).import_weights(
            name,
            file,
            model_type=model_type,
            config=config,
            codec=codec,
            delta_from=delta_from,
            format=format_name,
            force=force,
            progress=invocation.console,
        )
    facts = {
        "model": done.model,
        "action": done.action,
        "root": format_digest(done.root),
        "tensor_count": done.tensor_count,
        "size_bytes": done.size_bytes,
        "new_bytes": done.new_bytes,
        "stored_bytes": done.stored_bytes,
    }
    text = _sentence(done)
    if delta_from is not None and done.action != "unchanged" and not done.new_bytes:
        invocation.console.note(
            f"its chunks were stored already, and stay as they are: `arc-halo tensors recode "
            f"{done.model} --delta-from {delta_from}` makes deltas of them"
        )
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json(facts),
        markdown=lambda: text,
    )


def _sentence(done: Registered) -> str:
    from arc_halo.sizes import format_count, format_size

    what = f"{format_count(done.tensor_count, 'tensor')}, {format_size(done.size_bytes)}"
    if done.action == "unchanged":
        return f"{done.model} has these weights already: {what}"
    stored = (
        f"{format_size(done.stored_bytes)} stored" if done.new_bytes else "nothing new to store"
    )
    return f"{'Imported' if done.action == 'created' else 'Updated'} {done.model}: {what}, {stored}"
