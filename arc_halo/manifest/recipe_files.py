"""One merge reactor out of a YAML file or a project, for a merge that needs no database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arc_halo.config import environment_name, load_environment
from arc_halo.errors import InvalidInputError, ManifestError
from arc_halo.manifest.documents import ReactorSpec
from arc_halo.manifest.include import INCLUDED_FIELDS
from arc_halo.manifest.load import Source, load_text
from arc_halo.manifest.params import params_problems, with_defaults, with_gradients
from arc_halo.manifest.reactors import (
    WORDS,
    adapter_texts,
    member_counts,
    member_spec,
    named_members,
    parts_of,
    takes_count,
    vocabulary_of,
)
from arc_halo.manifest.reading import read_manifest, schema_of
from arc_halo.manifest.schema import validate
from arc_halo.names import did_you_mean
from arc_halo.plugins import PluginManager, Provided
from arc_halo.types import FusionStrategy, JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFile:
    """What a reactor says of a merge, and the plugins it was read with.

    Models are named as the reactor writes them.
    """

    reactor: str
    spec: ReactorSpec
    strategy: Provided[FusionStrategy]
    plugins: PluginManager


def read_recipe(
    path: Path,
    *,
    environ: Mapping[str, str],
    plugin_files: Sequence[Path] = (),
    reactor: str | None = None,
    environment: str | None = None,
) -> RecipeFile:
    """The merge reactor at `path`, or the one named `reactor` of several.

    A file is a part of a manifest: `reactors`, and the `strategies` they name. A directory is a
    project, with its includes and plugins, as `environment` has it. Raises `ManifestError` with
    every problem, `InvalidInputError` for a reactor that is no merge or that does not fit its
    strategy.
    """
    if path.is_dir():
        variables = load_environment(path, environ)
        name_of_overlay = environment_name(environment, variables)
        manifest = read_manifest(path, env=variables, environment=name_of_overlay)
        sources, plugins = manifest.sources, manifest.plugins
    else:
        plugins = PluginManager.load({str(file): file for file in plugin_files})
        sources = [_file(path, plugins)]
    name, data = _choose(path, _all(sources, "reactors"), reactor)
    strategy, params = _strategy(path, name, data, _all(sources, "strategies"), plugins)
    spec = ReactorSpec(
        type="merge",
        strategy=data["strategy"],
        uses=strategy.item.name,
        params=params,
        members=tuple(
            member_spec(each, each["model"], adapter_texts(each)) for each in data["members"]
        ),
        base=data.get("base"),
        **parts_of(data, {**{text: text for text in named_members(data)}, **_vocabularies(data)}),
    )
    _check(path, name, strategy.item, spec)
    _check_parts(path, name, strategy.item, data)
    return RecipeFile(reactor=name, spec=spec, strategy=strategy, plugins=plugins)


def _file(path: Path, plugins: PluginManager) -> Source:
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise InvalidInputError(
            f"{path}: {exc.strerror}", hint="name a file with a reactor in it", code="AH011"
        ) from exc
    source = load_text(raw, path=path, label=str(path))
    # A project file is one too, as far as it declares reactors.
    parts = {name: value for name, value in source.data.items() if name in INCLUDED_FIELDS}
    source = replace(source, data=parts, included=True)
    if problems := validate([source], schema_of(plugins)):
        raise ManifestError(problems)
    return source


def _all(sources: Sequence[Source], section: str) -> dict[str, JsonObject]:
    return {name: data for s in sources for name, data in s.data.get(section, {}).items()}


def _choose(
    path: Path, reactors: Mapping[str, JsonObject], wanted: str | None
) -> tuple[str, JsonObject]:
    merges = {name: data for name, data in reactors.items() if data["type"] == "merge"}
    if wanted is None and len(merges) == 1:
        return next(iter(merges.items()))
    if wanted in merges:
        return str(wanted), merges[str(wanted)]
    listed = ", ".join(merges) or "none"
    if wanted is None:
        raise InvalidInputError(
            f"{path}: it declares {len(merges)} merges: {listed}",
            hint="say which one: `--reactor NAME`" if merges else "declare a reactor, type: merge",
            code="AH020",
        )
    raise InvalidInputError(
        f"{path}: there is no merge reactor {wanted!r}",
        hint=did_you_mean(wanted, merges) or f"it declares {listed}",
        code="AH020",
    )


def _strategy(
    path: Path,
    name: str,
    data: JsonObject,
    declared: Mapping[str, JsonObject],
    plugins: PluginManager,
) -> tuple[Provided[FusionStrategy], JsonObject]:
    named = declared.get(data["strategy"], {"uses": data["strategy"]})
    if named["uses"] not in plugins.strategies:
        raise InvalidInputError(
            f"{path}: reactors.{name}: there is no strategy {named['uses']!r} in it, and none is "
            "built in",
            hint="declare it in the same file, name the project's directory, or give `--plugin`",
            code="AH020",
        )
    found = plugins.strategy(named["uses"])
    schema = found.item.params_schema
    params = {**named.get("params", {}), **data.get("params", {})}
    for _, phrase in params_problems(params, schema, ("reactors", name, "params")):
        raise InvalidInputError(f"{path}: {phrase.message}", hint=phrase.hint, code=phrase.code)
    return found, with_defaults(params, schema)


def _vocabularies(data: JsonObject) -> dict[str, str]:
    """What the model is called whose tokenizer the result is to have, if one is named."""
    if (text := vocabulary_of(data)["of"]) in WORDS:
        return {}
    models = [*(member["model"] for member in data["members"]), data.get("base", "")]
    meant = [name for name in models if name == text or _bare(name) == text]
    return {text: next(iter(meant or [name for name in models if name == _bare(text)]), text)}


def _bare(name: str) -> str:
    return name.partition("@")[0].partition(":")[0]


def _check(path: Path, name: str, strategy: FusionStrategy, spec: ReactorSpec) -> None:
    counts, most = member_counts(spec), strategy.max_members
    problem = None
    if strategy.fuse_weights is None:
        problem = "does not fuse weights"
    elif not all(takes_count(strategy, count) for count in counts):
        few, count = strategy.min_members, next(c for c in counts if not takes_count(strategy, c))
        problem = f"takes {few} to {most or 'any number of'} members, not {count}"
    elif strategy.needs_base and spec.base is None:
        problem = "needs a base model"
    elif spec.tokenizer is not None and spec.tokenizer.of == "base" and spec.base is None:
        problem = "has no base whose tokenizer the result could have"
    if problem:
        raise InvalidInputError(
            f"{path}: reactors.{name}: the strategy {strategy.name!r} {problem}", code="AH023"
        )


def _check_parts(path: Path, name: str, strategy: FusionStrategy, data: JsonObject) -> None:
    """Rules and slices: their members, and their params."""
    members = [member["model"] for member in data["members"]]
    models = [*members, *([data["base"]] if "base" in data else [])]
    for text, model in _vocabularies(data).items():
        if model not in models:
            raise InvalidInputError(
                f"{path}: reactors.{name}: tokenizer: {text!r} is neither a member nor the base",
                hint=did_you_mean(text, models) or f"say union, or one of {', '.join(models)}",
                code="AH020",
            )
    for text in named_members(data):
        if text not in members:
            raise InvalidInputError(
                f"{path}: reactors.{name}: {text!r} is not a member",
                hint=did_you_mean(text, members) or f"the members are {', '.join(members)}",
                code="AH020",
            )
    schema = with_gradients(strategy.params_schema, strategy.member_params)
    for field in ("tensors", "slices"):
        for index, part in enumerate(data.get(field, ())):
            place = ("reactors", name, field, index, "params")
            for _, phrase in params_problems(part.get("params", {}), schema, place):
                raise InvalidInputError(
                    f"{path}: {phrase.message}", hint=phrase.hint, code=phrase.code
                )
