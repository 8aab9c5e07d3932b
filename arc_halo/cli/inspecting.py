"""`arc-halo fuse inspect`: the conflicts of a merge, before it is paid for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arc_halo.cli.given_files import given_paths, given_tokenizers, open_given
from arc_halo.cli.invocation import Invocation, render
from arc_halo.cli.overwriting import refuse_existing
from arc_halo.errors import InvalidInputError, NotFoundError, UsageError

if TYPE_CHECKING:
    from arc_halo.fusion.conflicts import Inspection
    from arc_halo.fusion.recipes import FusionRecipe
    from arc_halo.manifest.documents import Desired, ReactorSpec
    from arc_halo.manifest.tokenizers import Tokenizer
    from arc_halo.project import Project
    from arc_halo.store.models import ModelRecord
    from arc_halo.types import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The models whose merge is inspected; with a reactor, what it says of it."""

    members: tuple[str, ...]
    base: str | None
    reactor: str | None = None
    spec: ReactorSpec | None = None
    desired: Desired | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """All whose weights are needed, adapters too."""
        if self.spec is not None:
            return self.spec.models
        return (*self.members, *([self.base] if self.base else []))

    @property
    def title(self) -> str:
        return self.reactor or ", ".join(self.members)


@click.command("inspect")
@click.argument("models", nargs=-1)
@click.option("--base", metavar="MODEL", help="What the models were tuned from.")
@click.option("--reactor", metavar="NAME", help="A merge reactor of the project, for its models.")
@click.option(
    "--from-files",
    "files",
    metavar="MODEL=PATH",
    multiple=True,
    help="The weights of a model, in place of the database's; once for each.",
)
@click.option(
    "--sample",
    metavar="ELEMENTS",
    type=click.IntRange(min=1),
    default=65536,
    show_default=True,
    help="How much of each tensor to look at, at most.",
)
@click.option(
    "--svg",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the heatmaps.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
@click.pass_obj
def inspect(
    invocation: Invocation,
    models: tuple[str, ...],
    base: str | None,
    reactor: str | None,
    files: tuple[str, ...],
    sample: int,
    svg: Path | None,
    force: bool,
) -> None:
    """Predict from a sample where models are at odds, before they are merged.

    Of what each model changed in its base: the cosines, how often signs differ where both changed,
    and how large the changes are; by layer and kind of module. A few places of each tensor are
    read, and nothing is merged or stored.

    \b
    Examples:
      arc-halo fuse inspect --reactor story
      arc-halo fuse inspect scripture python --base base --svg conflicts.svg
      arc-halo fuse inspect poet coder --base base --from-files poet=poet/ \\
        --from-files coder=coder/ --from-files base=base.safetensors
    """
    from arc_halo.cli.inspection_report import as_facts, as_markdown, print_text
    from arc_halo.fusion.heatmap_svg import draw
    from arc_halo.reconcile.report import as_json

    refuse_existing(svg, force=force)
    needs_database = not files and reactor is None
    with invocation.open(needs_manifest=reactor is not None, needs_database=needs_database) as to:
        asked = _asked(to, models, base, reactor)
        found = (
            _inspect_files(invocation, to, asked, files, sample)
            if files
            else _inspect_stored(invocation, to, asked, sample)
        )
    if svg is not None:
        svg.write_text(draw(found, asked.title, asked.base))
        invocation.console.note(f"{svg} is written")
    render(
        invocation,
        text=lambda: print_text(invocation.console, found, asked.base),
        json=lambda: as_json(
            {"reactor": asked.reactor, "members": list(asked.members), "base": asked.base}
            | as_facts(found, sample)
        ),
        markdown=lambda: as_markdown(found, asked.base),
    )


def _asked(project: Project, models: tuple[str, ...], base: str | None, name: str | None) -> Asked:
    if name is None:
        if len(models) < 2:
            raise UsageError(
                "it takes two models to be at odds",
                hint="name them, or the reactor that merges them: `--reactor NAME`",
            )
        return Asked(members=models, base=base)
    if models or base:
        raise UsageError(
            "a reactor says itself which models it merges",
            hint="leave out either `--reactor` or the models and `--base`",
        )
    asked = _of_reactor(project.desired_without_database(), name)
    if len(asked.members) < 2:
        raise InvalidInputError(
            f"reactor/{name} has one member: nothing can be at odds with it", code="AH023"
        )
    return asked


def _of_reactor(desired: Desired, name: str) -> Asked:
    from arc_halo.manifest.documents import ReactorSpec
    from arc_halo.names import did_you_mean

    merges = {
        key.name: each.spec
        for key, each in desired.declarations.items()
        if isinstance(each.spec, ReactorSpec) and each.spec.type == "merge"
    }
    spec = merges.get(name)
    if spec is None:
        raise InvalidInputError(
            f"there is no merge reactor {name!r}",
            hint=did_you_mean(name, merges) or f"the manifest has {', '.join(merges) or 'none'}",
            code="AH020",
        )
    members = tuple(member.model for member in spec.members)
    return Asked(members=members, base=spec.base, reactor=name, spec=spec, desired=desired)


def _inspect_files(
    invocation: Invocation, project: Project, asked: Asked, files: tuple[str, ...], sample: int
) -> Inspection:
    from arc_halo.fusion.inspecting import inspect_files
    from arc_halo.reconcile.resources import architectures

    paths = given_paths(asked.models, files)
    with ExitStack() as stack:
        opened = {
            name: open_given(stack, project.plugins, name, path) for name, path in paths.items()
        }
        configs = architectures(asked.desired, asked.spec) if asked.desired and asked.spec else {}
        tokenizers = given_tokenizers(asked.spec, paths) if asked.spec else {}
        recipe = _recipe(project, asked, dict.fromkeys(asked.models), configs, tokenizers)
        size_bytes = sum(t.size_bytes for m in opened.values() for t in m.tensors.values())
        with invocation.console.task(f"inspect {asked.title}", size_bytes) as advance:
            return inspect_files(opened, recipe, sample=sample, advance=advance)


def _inspect_stored(
    invocation: Invocation, project: Project, asked: Asked, sample: int
) -> Inspection:
    from arc_halo.fusion.inspecting import inspect_stored

    project.check_schema()
    records = {name: _record(project, asked, name) for name in asked.models}
    recipe = _recipe(
        project,
        asked,
        {name: each.root for name, each in records.items()},
        {name: each.architecture for name, each in records.items()},
        _stored_tokenizers(project, asked.spec, records) if asked.spec else {},
    )
    size_bytes = sum(each.size_bytes or 0 for each in records.values())
    with invocation.console.task(f"inspect {asked.title}", size_bytes) as advance:
        return inspect_stored(project.weights, recipe, sample=sample, advance=advance)


def _stored_tokenizers(
    project: Project, spec: ReactorSpec, records: Mapping[str, ModelRecord]
) -> dict[str, Tokenizer]:
    """Those of the models in the database, where the reactor aligns their rows."""
    from arc_halo.manifest.tokenizers import parse_tokenizer
    from arc_halo.store.tokenizers import documents

    digests = {name: records[name].tokenizer_digest for name in spec.inputs if spec.tokenizer}
    for name, digest in digests.items():
        if digest is None:
            raise InvalidInputError(
                f"the rows are to be aligned, and model/{name} has no tokenizer",
                hint=f"declare `tokenizer:` for {name}, and apply",
                code="AH023",
            )
    with project.connection() as conn:
        found = documents(conn, [digest for digest in digests.values() if digest])
    return {
        name: parse_tokenizer(found[digest], f"the tokenizer of {name}")
        for name, digest in digests.items()
        if digest
    }


def _record(project: Project, asked: Asked, name: str) -> ModelRecord:
    """A model with weights. Raises `NotFoundError` where the database has none."""
    from arc_halo.cli.tensors.models import weights_of

    try:
        with project.connection() as conn:
            return weights_of(conn, name)[0]
    except NotFoundError as exc:
        if asked.desired is None:
            raise
        raise NotFoundError(
            f"reactor/{asked.reactor} merges {name}, which is not applied yet",
            hint=_how_to_have(asked.desired, name),
            code="AH064",
        ) from exc


def _how_to_have(desired: Desired, name: str) -> str:
    from arc_halo.manifest.documents import MODEL, ModelSpec
    from arc_halo.types import Key

    declaration = desired.declarations.get(Key(kind=MODEL, name=name))
    spec = declaration.spec if declaration else None
    label = spec.weights.label if isinstance(spec, ModelSpec) and spec.weights else "PATH"
    return f"`arc-halo apply` imports it; or read files: `--from-files {name}={label}`"


def _recipe(
    project: Project,
    asked: Asked,
    roots: Mapping[str, bytes | None],
    configs: Mapping[str, JsonObject],
    tokenizers: Mapping[str, Tokenizer],
) -> FusionRecipe:
    """Of a reactor with its base, even if its strategy makes nothing of it: changes are seen."""
    from arc_halo.fusion.inspecting import bare_recipe
    from arc_halo.fusion.recipes import FusionInput, recipe_of

    base = FusionInput(model=asked.base, root=roots[asked.base]) if asked.base else None
    if asked.spec is None:
        members = [FusionInput(model=name, root=roots[name]) for name in asked.members]
        return bare_recipe(members, base, project.plugins.strategy("linear"))
    strategy = project.plugins.strategy(asked.spec.uses)
    recipe = recipe_of(asked.spec, strategy, roots, configs, tokenizers)
    return replace(recipe, base=base)
