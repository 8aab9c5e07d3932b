"""`arc-halo training checkpoints`: listed, compared, pinned, and written to files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.overwriting import refuse_existing
from arc_halo.cli.training import checkpoint_facts as facts_of

if TYPE_CHECKING:
    from arc_halo.project import Project
    from arc_halo.store.checkpoints import Checkpoint


@click.group("checkpoints")
def checkpoints() -> None:
    """Look at the checkpoints of training sessions, pin them, and take their weights.

    CHECKPOINT is a session, which means its latest, SESSION:STEP, SESSION:best, or the beginning
    of a checkpoint's id.

    \b
    Examples:
      arc-halo training checkpoints ls night-3
      arc-halo training checkpoints diff night-3:1000 night-3:best
      arc-halo training checkpoints restore night-3:best -o out/
      arc-halo training checkpoints pin night-3:1000
    """


@checkpoints.command("ls")
@click.argument("session")
@click.pass_obj
def ls(invocation: Invocation, session: str) -> None:
    """List the checkpoints of SESSION, and why each is kept.

    \b
    Examples:
      arc-halo training checkpoints ls night-3
      arc-halo training checkpoints ls 0f6e2a --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import checkpoints as store_of
    from arc_halo.training.naming import find_session

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = find_session(conn, session)
            points = store_of.checkpoints(conn, [found.id])
    rows = [facts_of.row(each) for each in points]
    facts = {
        "session": str(found.id),
        "name": found.session_name,
        "checkpoints": [facts_of.as_facts(each) for each in points],
    }
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(facts_of.HEADER, rows) if rows else f"{session} has no checkpoint."
        ),
        json=lambda: as_json(facts),
        markdown=lambda: markdown_table(facts_of.HEADER, rows),
    )


@checkpoints.command("diff")
@click.argument("first")
@click.argument("second")
@click.option("--exit-code", is_flag=True, help="Exit with 2 where they differ.")
@click.pass_obj
def diff(invocation: Invocation, first: str, second: str, exit_code: bool) -> int:
    """Compare two checkpoints: weights and all state, tensor by tensor.

    What is equal has one digest, and is never read. Of a tensor that changed: the bytes of chunks
    that both share, the norm of the change, that over the norm of the first, the largest change of
    an element, and the share of elements that changed. Values such as learning rates are compared
    too.

    \b
    Examples:
      arc-halo training checkpoints diff night-3:1000 night-3:2000
      arc-halo training checkpoints diff night-2:best night-3:best --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.training.checkpoints import comparing
    from arc_halo.training.checkpoints.finding import find_checkpoint

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        store = project.weights
        with project.connection() as conn:
            one, two = find_checkpoint(conn, first), find_checkpoint(conn, second)
        sides = comparing.look(store, one), comparing.look(store, two)
        with invocation.console.task("compare", comparing.bytes_to_read(*sides)) as advance:
            found = comparing.compare(store, *sides, advance=advance)
    told = facts_of.diff_tables(found)
    summary = facts_of.diff_summary(found, f"{first} and {second}")
    render(
        invocation,
        text=lambda: invocation.console.print(
            "\n\n".join([*(table(*each) for each in told), summary])
        ),
        json=lambda: as_json(facts_of.diff_facts(one, two, found)),
        markdown=lambda: "\n\n".join([*(markdown_table(*each) for each in told), summary]),
    )
    return 2 if exit_code and not found.is_equal else 0


@checkpoints.command("restore")
@click.argument("checkpoint")
@click.option(
    "-o",
    "--out",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The directory to write the weights into.",
)
@click.option(
    "--format",
    "format_name",
    metavar="NAME",
    default="safetensors",
    show_default=True,
    help="The format to write; `arc-halo plugins` lists them.",
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.pass_obj
def restore(
    invocation: Invocation, checkpoint: str, directory: Path, format_name: str, force: bool
) -> None:
    """Write the weights of CHECKPOINT to files, with the model's config.json if it is registered.

    A program goes on from a checkpoint with `run.restore(...)`, which restores all of it.

    \b
    Examples:
      arc-halo training checkpoints restore night-3:best -o out/
      arc-halo training checkpoints restore 0f6e2a1c -o out/ --force
    """
    from arc_halo.formats.sharding import files_of
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_count, format_size
    from arc_halo.training.checkpoints.finding import find_checkpoint
    from arc_halo.transfer import exporting

    with invocation.open(needs_database=True) as project:
        weight_format = project.plugins.format(format_name)
        exporting.check_writable(weight_format, is_sharded=False)
        path = exporting.weights_path(directory, weight_format)
        config_path = directory / "config.json"
        refuse_existing(*files_of(path), config_path, force=force)
        project.check_schema()
        with project.connection() as conn:
            point = find_checkpoint(conn, checkpoint, parts=frozenset({"model"}))
        set_id = facts_of.weights_of(point)
        directory.mkdir(parents=True, exist_ok=True)
        with invocation.console.task(f"restore {checkpoint}", point.size_bytes) as advance:
            exported = exporting.export_weights(
                project.weights,
                set_id,
                path,
                weight_format,
                metadata={"session": str(point.session_id), "step": str(point.step)},
                advance=advance,
            )
        architecture = _architecture(project, point)
        if architecture:
            exporting.export_config(architecture, config_path)
    files = [*exported.files, *([config_path] if architecture else [])]
    text = (
        f"Restored step {point.step}: {format_count(exported.tensor_count, 'tensor')}, "
        f"{format_size(exported.size_bytes)} to {path}"
    )
    facts = {
        "checkpoint": str(point.id),
        "step": point.step,
        "files": [str(file) for file in files],
        "tensor_count": exported.tensor_count,
        "size_bytes": exported.size_bytes,
    }
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json(facts),
        markdown=lambda: text,
    )


@checkpoints.command("pin")
@click.argument("checkpoint")
@click.option("--off", is_flag=True, help="Have it no longer stay whatever the retention says.")
@click.pass_obj
def pin(invocation: Invocation, checkpoint: str, off: bool) -> None:
    """Have CHECKPOINT stay, whatever the retention says.

    \b
    Examples:
      arc-halo training checkpoints pin night-3:1000
      arc-halo training checkpoints pin night-3:1000 --off
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.training.checkpoints.checkpoints import Checkpoints
    from arc_halo.training.checkpoints.finding import find_checkpoint

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = find_checkpoint(conn, checkpoint)
        point = Checkpoints(project.weights, found.session_id).pin(found.id, pinned=not off)
    text = f"Step {point.step} is {'no longer ' * off}pinned."
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json(facts_of.as_facts(point)),
        markdown=lambda: text,
    )


def _architecture(project: Project, point: Checkpoint) -> dict[str, object] | None:
    """The config of the model that the session trains, where it is registered."""
    from arc_halo.reconcile.showing import find_model
    from arc_halo.store import training_sessions

    with project.connection() as conn:
        session = training_sessions.find(conn, point.session_id)
        record = None if session is None else find_model(conn, session.model)
    return None if record is None else dict(record.architecture)
