"""Collecting the names a manifest declares, before any reference to them is followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from arc_halo.manifest import load
from arc_halo.manifest.problems import Found, Pointer, Problems
from arc_halo.plugins import PluginManager
from arc_halo.types import JsonObject


@dataclass(slots=True, kw_only=True)
class Names:
    """Everything declared, by name; models by `name@version`, those that merges produce too."""

    plugins: PluginManager
    problems: Problems
    models: dict[str, Found] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    strategies: dict[str, Found] = field(default_factory=dict)
    reactors: dict[str, Found] = field(default_factory=dict)
    trainings: dict[str, Found] = field(default_factory=dict)
    caches: dict[str, Found] = field(default_factory=dict)
    producers: dict[str, Found] = field(default_factory=dict)

    def collect(self, sources: Sequence[load.Source]) -> None:
        for source in sources:
            for name, data in source.data.get("strategies", {}).items():
                self._collect_named(self.strategies, "strategies", name, data, source)
            for name, data in source.data.get("reactors", {}).items():
                self._collect_named(self.reactors, "reactors", name, data, source)
            for name, data in source.data.get("training", {}).items():
                self._collect_named(self.trainings, "training", name, data, source)
            for name, data in source.data.get("inference", {}).items():
                self._collect_named(self.caches, "inference", name, data, source)
            for name, data in source.data.get("models", {}).items():
                self._collect_model(name, data, source)
        for found in self.reactors.values():
            self._collect_produced(found)

    def _collect_named(
        self,
        into: dict[str, Found],
        section: str,
        name: str,
        data: JsonObject,
        source: load.Source,
    ) -> None:
        found = Found(name=name, data=data, source=source, pointer=(section, name))
        if name in into:
            self.problems.twice(found, into[name])
        elif section == "strategies" and name in self.plugins.strategies:
            provider = self.plugins.strategies[name].provider
            self.problems.add(
                found,
                (),
                "AH013",
                f"{name!r} is already a strategy of {provider}",
                "choose another name",
                key=True,
            )
        else:
            into[name] = found

    def _collect_model(self, text: str, data: JsonObject, source: load.Source) -> None:
        found = Found(name=text, data=data, source=source, pointer=("models", text))
        name, at, version = text.partition("@")
        declared = data.get("version")
        if at and declared is not None and declared != version:
            message = f"the key says version {version!r}, the field says {declared!r}"
            self.problems.add(found, ("version",), "AH006", message, "leave one of them out")
            return
        version = version or declared or ""
        if not version:
            self.problems.add(
                found,
                ("version",),
                "AH005",
                f"models.{text} has no version",
                "add `version: 1.0.0`, or write the key as `name@1.0.0`",
                key=True,
            )
            return
        found.name = f"{name}@{version}"
        self._add_model(found, name, version, data.get("aliases", ()), ("aliases",))

    def _collect_produced(self, found: Found) -> None:
        produces = found.data.get("produces")
        is_merge = found.data["type"] == "merge"
        if produces is None:
            if is_merge:
                hint = "add `produces: {model: NAME, version: 1.0.0}`"
                message = f"the merge reactor {found.name} does not say what it produces"
                self.problems.add(found, ("produces",), "AH024", message, hint, key=True)
            return
        if not is_merge:
            message = f"a reactor of type {found.data['type']} produces no model"
            self.problems.add(found, ("produces",), "AH024", message, "only `type: merge` does")
            return
        name, version = produces["model"], produces["version"]
        model = Found(
            name=f"{name}@{version}",
            data=produces,
            source=found.source,
            pointer=(*found.pointer, "produces"),
        )
        if self._add_model(model, name, version, produces.get("aliases", ()), ("aliases",)):
            self.producers[model.name] = found

    def _add_model(
        self, found: Found, name: str, version: str, aliases: Sequence[str], pointer: Pointer
    ) -> bool:
        if found.name in self.models:
            self.problems.twice(found, self.models[found.name])
            return False
        self.models[found.name] = found
        self.versions.setdefault(name, []).append(version)
        for index, alias in enumerate(aliases):
            other = self.aliases.setdefault((name, alias), found.name)
            if other != found.name:
                message = f"the alias {name}:{alias} already points to {other}"
                self.problems.add(found, (*pointer, index), "AH013", message, None)
        return True
