"""`arc-halo export`: a model's weights and config as files other tools load."""

from __future__ import annotations

from pathlib import Path

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.cli.overwriting import refuse_existing
from arc_halo.cli.tensors.models import weights_of
from arc_halo.errors import InvalidInputError


@click.command("export")
@click.argument("model")
@click.option(
    "-o",
    "--out",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The directory to write model.safetensors, config.json and tokenizer.json into.",
)
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    help="Split larger weights into files of at most SIZE (2GB, 500MiB) and an index.",
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
def export(
    invocation: Invocation,
    model: str,
    directory: Path,
    max_shard_size: str | None,
    format_name: str,
    force: bool,
) -> None:
    """Write a model to DIRECTORY: model.safetensors, config.json and its tokenizer.json, if known.

    MODEL is a name, name@version or name:alias. The bytes are those that were stored: every
    digest is verified on the way, and a file appears complete or not at all, an index after all
    of its shards.

    \b
    Examples:
      arc-halo export story -o out/
      arc-halo export story:production -o out/ --force
      arc-halo export story -o out/ --max-shard-size 2GB
    """
    from arc_halo.formats.sharding import files_of
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_count, format_size
    from arc_halo.transfer import exporting

    max_shard_bytes = _shard_bytes(max_shard_size)
    with invocation.open(needs_database=True) as project:
        weight_format = project.plugins.format(format_name)
        exporting.check_writable(weight_format, is_sharded=max_shard_bytes is not None)
        weights_path = exporting.weights_path(directory, weight_format)
        config_path = directory / "config.json"
        refuse_existing(*files_of(weights_path), config_path, force=force)
        project.check_schema()
        with project.connection() as conn:
            record, weight_set_id = weights_of(conn, model)
            tokenizer = exporting.tokenizer_of(conn, record)
        tokenizer_path = directory / "tokenizer.json"
        if tokenizer is not None:
            refuse_existing(tokenizer_path, force=force)
        directory.mkdir(parents=True, exist_ok=True)
        with invocation.console.task(f"export {model}", record.size_bytes or 0) as advance:
            exported = exporting.export_weights(
                project.weights,
                weight_set_id,
                weights_path,
                weight_format,
                metadata=record.metadata or {},
                max_shard_bytes=max_shard_bytes,
                advance=advance,
            )
        exporting.export_config(record.architecture, config_path)
        if tokenizer is not None:
            exporting.export_tokenizer(tokenizer, tokenizer_path)
    shards = len(exported.files) - 1
    text = (
        f"Exported {record.full_name}: {format_count(exported.tensor_count, 'tensor')}, "
        f"{format_size(exported.size_bytes)} to {exported.files[0]}"
    ) + (f" and {format_count(shards, 'shard')}" if shards else "")
    files = [*exported.files, config_path, *([tokenizer_path] if tokenizer is not None else [])]
    facts = {
        "model": record.full_name,
        "files": [str(path) for path in files],
        "tensor_count": exported.tensor_count,
        "size_bytes": exported.size_bytes,
    }
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json(facts),
        markdown=lambda: text,
    )


def _shard_bytes(text: str | None) -> int | None:
    from arc_halo.config import parse_size

    if text is None:
        return None
    size_bytes = parse_size(text)
    if size_bytes < 1:
        raise InvalidInputError(
            f"shards of {text} hold nothing", code="AH090", hint="write a size such as 2GB"
        )
    return size_bytes
