"""A whole manifest: its files loaded, its plugins loaded, everything validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arc_halo.errors import ManifestError, Problem
from arc_halo.manifest.base_plugins import explained, plugins_at
from arc_halo.manifest.load import Source, load_project, problem
from arc_halo.manifest.paths import PathRefusedError, contained
from arc_halo.manifest.schema import compose_schema, validate
from arc_halo.plugins import PluginManager
from arc_halo.types import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A valid manifest, the project file first, and the plugins it was read with."""

    directory: Path
    sources: Sequence[Source]
    plugins: PluginManager
    allow_paths: Sequence[Path] = ()

    @property
    def head(self) -> JsonObject:
        return self.sources[0].data

    @property
    def project(self) -> str:
        return str(self.head["project"])


def read_manifest(
    directory: Path,
    *,
    env: Mapping[str, str],
    allow_paths: Sequence[Path] = (),
    environment: str | None = None,
    plugins_from: str | None = None,
) -> Manifest:
    """The manifest of the project in `directory`, as its `environment` has it.

    Its plugins are those that it has at the commit `plugins_from`, if one is given. Raises
    `ManifestError` with all problems of all files, `PluginError` for a plugin that does not load.
    Names are not resolved yet.
    """
    sources = load_project(directory, env=env, allow_paths=allow_paths, environment=environment)
    if plugins_from is None:
        plugins = PluginManager.load(_plugin_files(sources[0], directory, allow_paths))
    else:
        listed = sources[0].data.get("plugins")
        listed = listed if isinstance(listed, list) else []
        base = plugins_at(plugins_from, directory, listed=listed, env=env)
        plugins = PluginManager.load(base.files, remarks=base.remarks)
    if problems := validate(sources, schema_of(plugins)):
        raise ManifestError(explained(problems, sources[0], plugins))
    return Manifest(
        directory=directory, sources=sources, plugins=plugins, allow_paths=tuple(allow_paths)
    )


def schema_of(plugins: PluginManager) -> JsonObject:
    """The JSON Schema of manifests that may use what `plugins` provide."""
    return compose_schema(
        plugins.strategy_params(),
        list(plugins.codecs),
        list(plugins.body_stores),
        plugins.runner_params(),
    )


def _plugin_files(head: Source, directory: Path, allow_paths: Sequence[Path]) -> dict[str, Path]:
    """The files that `plugins:` lists. What is not a list of texts is left to the schema."""
    listed = head.data.get("plugins", [])
    if not isinstance(listed, list):
        return {}
    files: dict[str, Path] = {}
    problems: list[Problem] = []
    for index, label in enumerate(listed):
        if not isinstance(label, str):
            continue
        try:
            path = contained(directory, label, allow_paths)
        except PathRefusedError as exc:
            problems.append(problem(head, ("plugins", index), "AH012", str(exc), hint=exc.hint))
            continue
        if not path.is_file():
            message = f"there is no plugin file {label}"
            hint = "plugins are files ending in .py, named from the project directory"
            problems.append(problem(head, ("plugins", index), "AH011", message, hint=hint))
            continue
        files[label] = path
    if problems:
        raise ManifestError(problems)
    return files
