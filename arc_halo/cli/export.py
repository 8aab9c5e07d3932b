"""`arc-halo export`: a model's weights and config as files other tools load."""

from __future__ import annotations

from pathlib import Path

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.errors import InvalidInputError, NotFoundError


@click.command("export")
@click.argument("model")
@click.option(
    "-o",
    "--out",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The directory to write model.safetensors and config.json into.",
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.pass_obj
def export(invocation: Invocation, model: str, directory: Path, force: bool) -> None:
    """Write a model to DIRECTORY: model.safetensors and config.json.

    MODEL is a name, name@version or name:alias. The bytes are those that were stored: every
    digest is verified on the way, and a file appears complete or not at all.

    \b
    Examples:
      arc-halo export story -o out/
      arc-halo export story:production -o out/ --force
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.reconcile.showing import find_model
    from arc_halo.sizes import format_count, format_size
    from arc_halo.transfer.exporting import export_config, export_weights

    weights_path, config_path = directory / "model.safetensors", directory / "config.json"
    if not force:
        _refuse_existing(weights_path, config_path)
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            record = find_model(conn, model)
        if record is None:
            raise NotFoundError(f"there is no model {model!r}", hint="see `arc-halo get models`")
        if record.weight_set_id is None:
            raise NotFoundError(
                f"{record.full_name} has no weights",
                hint="declare `weights:` for it, and apply",
                code="AH064",
            )
        directory.mkdir(parents=True, exist_ok=True)
        with invocation.console.task(f"export {model}", record.size_bytes or 0) as advance:
            tensors = export_weights(
                project.weights,
                record.weight_set_id,
                weights_path,
                project.plugins.format("safetensors"),
                metadata=record.metadata or {},
                advance=advance,
            )
        export_config(record.architecture, config_path)
    size = sum(tensor.size_bytes for tensor in tensors)
    text = (
        f"Exported {record.full_name}: {format_count(len(tensors), 'tensor')}, "
        f"{format_size(size)} to {weights_path}"
    )
    facts = {
        "model": record.full_name,
        "files": [str(weights_path), str(config_path)],
        "tensor_count": len(tensors),
        "size_bytes": size,
    }
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json(facts),
        markdown=lambda: text,
    )


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise InvalidInputError(
                f"{path} is there already", hint="`--force` overwrites it", code="AH014"
            )
