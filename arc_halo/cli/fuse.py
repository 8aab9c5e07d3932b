"""`arc-halo fuse`: merges without a database."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arc_halo.cli.given_files import TOKENIZER, given_paths, given_tokenizers, open_given
from arc_halo.cli.inspecting import inspect
from arc_halo.cli.invocation import Invocation, render
from arc_halo.cli.overwriting import refuse_existing
from arc_halo.cli.verifying import verify

if TYPE_CHECKING:
    from arc_halo.fusion.vocabularies import Vocabularies
    from arc_halo.manifest.documents import AdapterSpec, ReactorSpec
    from arc_halo.manifest.recipe_files import RecipeFile
    from arc_halo.plugins import PluginManager
    from arc_halo.types import JsonObject

OUTPUT = "model.safetensors"


@click.group("fuse")
def fuse() -> None:
    """Fuse the weights of models: look at what is to come first, or merge without a database.

    \b
    Examples:
      arc-halo fuse inspect --reactor story                 where the members are at odds
      arc-halo fuse run . --reactor story --from-files …    the merge, from files to a file
      arc-halo fuse verify story                            the merge computed again, compared
    """


fuse.add_command(inspect)
fuse.add_command(verify)


@fuse.command("run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--from-files",
    "files",
    metavar="MODEL=PATH",
    multiple=True,
    required=True,
    help="The weights of a model that the recipe names; once for each.",
)
@click.option(
    "--to-dir",
    "directory",
    metavar="DIRECTORY",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write model.safetensors, config.json and, where merged, tokenizer.json.",
)
@click.option("--reactor", metavar="NAME", help="Which reactor, where RECIPE declares several.")
@click.option(
    "--plugin",
    "plugin_files",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A plugin file to load beside those that are installed.",
)
@click.option(
    "--memory", metavar="SIZE", default="256MiB", show_default=True, help="What windows may take."
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.pass_obj
def run(
    invocation: Invocation,
    recipe: Path,
    files: tuple[str, ...],
    directory: Path,
    reactor: str | None,
    plugin_files: tuple[Path, ...],
    memory: str,
    force: bool,
) -> None:
    """Do the merge of a reactor from files to a file, without a database.

    RECIPE is a YAML file with `reactors:`, as a project includes them, or a project's directory.
    The bits are those that `apply` would come to; nothing is recorded anywhere.

    \b
    Examples:
      arc-halo fuse run blend.yaml --from-files poet=poet/ --from-files coder=coder/ --to-dir out
      arc-halo fuse run . --reactor story --from-files base=base.safetensors \\
        --from-files python=python/ --from-files scripture=scripture/ --to-dir out
    """
    from arc_halo.config import parse_size
    from arc_halo.fusion.files import FileMerge
    from arc_halo.fusion.recipes import recipe_of
    from arc_halo.manifest.recipe_files import read_recipe
    from arc_halo.reconcile.report import as_json

    wanted = read_recipe(
        recipe,
        environ=os.environ,
        plugin_files=plugin_files,
        reactor=reactor,
        environment=invocation.env,
    )
    plugins = wanted.plugins
    paths = _paths(wanted, files)
    out = directory / OUTPUT
    refuse_existing(out, force=force)
    tokenizers = given_tokenizers(wanted.spec, paths)
    with ExitStack() as stack:
        opened = {name: open_given(stack, plugins, name, path) for name, path in paths.items()}
        roots = _roots(plugins, paths) if wanted.strategy.item.is_random else {}
        configs = {m.model: _adapter_config(paths[m.model]) for m in _adapters(wanted)}
        fusion = recipe_of(wanted.spec, wanted.strategy, roots, configs, tokenizers)
        merge = FileMerge(fusion, opened, memory_bytes=parse_size(memory))
        directory.mkdir(parents=True, exist_ok=True)
        with invocation.console.task(f"fuse {wanted.reactor}", merge.size_bytes) as advance:
            merge.write(plugins.format("safetensors"), out, advance=advance)
    first = paths[wanted.spec.base or wanted.spec.members[0].model]
    _write_config(first, wanted.spec, fusion.vocabularies, directory)
    if fusion.vocabularies is not None:
        (directory / TOKENIZER).write_bytes(fusion.vocabularies.result.document)
    facts = {
        "reactor": wanted.reactor,
        "strategy": wanted.spec.uses,
        "params": wanted.spec.params,
        "tensor_count": len(merge.tensors),
        "size_bytes": merge.size_bytes,
        "file": str(out),
    }
    text = _sentence(len(merge.tensors), merge.size_bytes, wanted, out)
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json(facts),
        markdown=lambda: text,
    )


@fuse.command("import-recipe")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--name", default="merged", show_default=True, help="What the result is to be.")
@click.option(
    "--reactor-only", is_flag=True, help="Leave the models out, where they are declared already."
)
@click.pass_obj
def import_recipe(invocation: Invocation, file: Path, name: str, reactor_only: bool) -> None:
    """Turn a mergekit configuration into a part of a manifest, printed.

    Gradients and filters become rules for tensors, slices stay slices. What a manifest cannot
    express is refused, all of it by name. The result can be included in a project, or merged from
    files by `fuse run`.

    \b
    Examples:
      arc-halo fuse import-recipe ties.yml > reactors/ties.yaml
      arc-halo fuse import-recipe ties.yml --name story --reactor-only
    """
    import yaml

    from arc_halo.errors import InvalidInputError
    from arc_halo.manifest.load import load_text
    from arc_halo.manifest.mergekit import convert
    from arc_halo.names import NAME, is_name
    from arc_halo.reconcile.report import as_json

    if not is_name(name):
        raise InvalidInputError(f"{name!r} is not a name", hint=f"it matches {NAME}", code="AH006")
    source = load_text(file.read_bytes(), path=file, label=str(file))
    found = convert(source.data, label=str(file), reactor=name)
    for note in found.notes:
        invocation.console.note(note)
    document = {"reactors": found.document["reactors"]} if reactor_only else found.document
    text = yaml.safe_dump(
        document, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    ).rstrip("\n")
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json(document),
        markdown=lambda: f"```yaml\n{text}\n```",
    )


def _paths(wanted: RecipeFile, files: Sequence[str]) -> dict[str, Path]:
    """The files of every model, by the names that the recipe gives them."""
    return given_paths(wanted.spec.models, files)


def _adapters(wanted: RecipeFile) -> Iterator[AdapterSpec]:
    for member in wanted.spec.members:
        yield from member.adapters


def _adapter_config(path: Path) -> JsonObject:
    """The `adapter_config.json` beside an adapter's weights."""
    from arc_halo.manifest.model_files import read_architecture

    config = (path if path.is_dir() else path.parent) / "adapter_config.json"
    return read_architecture(config, str(config))


def _roots(plugins: PluginManager, paths: Mapping[str, Path]) -> dict[str, bytes]:
    """What is chosen at random is the weights' own: they have to be known."""
    from arc_halo.formats.finding import find_format
    from arc_halo.transfer.sources import DigestCache, source_facts

    formats = {each: provided.item for each, provided in plugins.formats.items()}
    cache = DigestCache(None)
    return {
        name: source_facts(path.resolve(), find_format(path, formats), cache).root
        for name, path in paths.items()
    }


def _write_config(
    path: Path, spec: ReactorSpec, vocabularies: Vocabularies | None, directory: Path
) -> None:
    """The `config.json` beside a model, as it is for the result."""
    import json

    from arc_halo.architectures import changed_architecture
    from arc_halo.manifest.model_files import read_architecture

    config, out = (
        (path if path.is_dir() else path.parent) / "config.json",
        directory / "config.json",
    )
    if not config.is_file() or config.resolve() == out.resolve():
        return
    if spec.layers is None and spec.out_dtype is None and vocabularies is None:
        shutil.copyfile(config, out)
        return
    found = read_architecture(config, str(config))
    changed = changed_architecture(
        found,
        layers=spec.layers,
        dtype=spec.out_dtype,
        vocabulary=vocabularies.row_count if vocabularies else None,
    )
    out.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n")


def _sentence(count: int, size_bytes: int, wanted: RecipeFile, out: Path) -> str:
    from arc_halo.sizes import format_count, format_size

    what = f"{format_count(count, 'tensor')}, {format_size(size_bytes)}"
    return f"Fused {wanted.reactor} by {wanted.spec.uses}: {what} to {out}"
