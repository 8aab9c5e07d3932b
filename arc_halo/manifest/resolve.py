"""From loaded YAML to desired state: names become references, `produces` becomes a graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from arc_halo.config import parse_size
from arc_halo.errors import ManifestError, Problem
from arc_halo.manifest import load
from arc_halo.manifest.documents import (
    KINDS,
    MODEL,
    REACTOR,
    STRATEGY,
    Declaration,
    Desired,
    InteractionSpec,
    Lifecycle,
    MemberSpec,
    ModelSpec,
    ReactorSpec,
    RegisteredModel,
    Settings,
    StrategySpec,
    WeightsSource,
    Where,
)
from arc_halo.manifest.params import params_problems, with_defaults
from arc_halo.manifest.paths import PathRefusedError, contained
from arc_halo.names import ModelReference, did_you_mean, parse_reference
from arc_halo.plugins import PluginManager
from arc_halo.types import JsonObject, Key

Pointer = tuple[str | int, ...]
Registered = Mapping[tuple[str, str], RegisteredModel]


def resolve(
    sources: Sequence[load.Source],
    plugins: PluginManager,
    *,
    allow_paths: Sequence[Path] = (),
    registered: Registered | None = None,
) -> Desired:
    """The desired state that validated `sources` declare.

    `registered` holds the database's models that are referred to by `name:alias`; None means
    that no database is at hand, and such references are taken on trust. Raises `ManifestError`
    with every problem found.
    """
    resolver = _Resolver(sources, plugins, allow_paths, registered)
    desired = resolver.run()
    if resolver.problems:
        raise ManifestError(resolver.problems)
    return desired


def alias_references(sources: Sequence[load.Source]) -> set[tuple[str, str]]:
    """The (name, alias) pairs that reactors refer to: what to look up before resolving."""
    found = set()
    for source in sources:
        for reactor in source.data.get("reactors", {}).values():
            for text in _model_texts(reactor):
                reference = parse_reference(text)
                if reference is not None and reference.alias is not None:
                    found.add((reference.name, reference.alias))
    return found


def manifest_digest(sources: Sequence[load.Source], plugins: PluginManager) -> bytes:
    """Names what a manifest says: its files and the plugins that interpret it."""
    digest = hashlib.sha256(b"arc-halo/manifest/1\0")
    for source in sources:
        digest.update(source.label.encode() + b"\0" + source.digest)
    for provider in plugins.providers:
        digest.update(f"{provider.name}\0{provider.version}\0".encode())
    return digest.digest()


def read_settings(head: JsonObject) -> Settings:
    """`storage:` and `settings:` of a project file, with their defaults."""
    storage: JsonObject = head.get("storage", {})
    settings: JsonObject = head.get("settings", {})
    defaults = Settings()
    return Settings(
        codec=storage.get("codec"),
        chunk_bytes=parse_size(str(storage.get("chunk_bytes", defaults.chunk_bytes))),
        memory_bytes=parse_size(str(settings.get("memory", defaults.memory_bytes))),
        threads=settings.get("threads", defaults.threads),
        prune=settings.get("prune", defaults.prune),
        max_deletes=settings.get("max_deletes"),
    )


def _model_texts(reactor: JsonObject) -> Iterator[str]:
    if reactor.get("base"):
        yield reactor["base"]
    for member in reactor.get("members", ()):
        yield member["model"]
    for edge in reactor.get("interactions", ()):
        yield edge["from"]
        yield edge["to"]


@dataclass(slots=True, kw_only=True)
class _Found:
    """A document on its way to a declaration."""

    name: str
    data: JsonObject
    source: load.Source
    pointer: Pointer

    @property
    def where(self) -> Where:
        return Where(file=self.source.label, pointer=self.pointer)


@dataclass(slots=True)
class _Resolver:
    sources: Sequence[load.Source]
    plugins: PluginManager
    allow_paths: Sequence[Path]
    registered: Registered | None
    problems: list[Problem] = field(default_factory=list)
    models: dict[str, _Found] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    strategies: dict[str, _Found] = field(default_factory=dict)
    reactors: dict[str, _Found] = field(default_factory=dict)
    producers: dict[str, _Found] = field(default_factory=dict)
    used: dict[str, RegisteredModel] = field(default_factory=dict)
    architectures: dict[Path, JsonObject | None] = field(default_factory=dict)
    specs: dict[str, ReactorSpec] = field(default_factory=dict)

    @property
    def head(self) -> load.Source:
        return self.sources[0]

    def run(self) -> Desired:
        self._collect()
        declarations = {d.key: d for d in self._declare() if d is not None}
        return Desired(
            project=self.head.data["project"],
            declarations=self._ordered(declarations),
            settings=read_settings(self.head.data),
            manifest_digest=manifest_digest(self.sources, self.plugins),
            registered=self.used,
            sources={source.label: source for source in self.sources},
        )

    # Collecting names

    def _collect(self) -> None:
        for source in self.sources:
            for name, data in source.data.get("strategies", {}).items():
                self._collect_named(self.strategies, "strategies", name, data, source)
            for name, data in source.data.get("reactors", {}).items():
                self._collect_named(self.reactors, "reactors", name, data, source)
            for name, data in source.data.get("models", {}).items():
                self._collect_model(name, data, source)
        for found in self.reactors.values():
            self._collect_produced(found)

    def _collect_named(
        self,
        into: dict[str, _Found],
        section: str,
        name: str,
        data: JsonObject,
        source: load.Source,
    ) -> None:
        found = _Found(name=name, data=data, source=source, pointer=(section, name))
        if name in into:
            self._twice(found, into[name])
        elif section == "strategies" and name in self.plugins.strategies:
            provider = self.plugins.strategies[name].provider
            self._problem(
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
        found = _Found(name=text, data=data, source=source, pointer=("models", text))
        name, at, version = text.partition("@")
        declared = data.get("version")
        if at and declared is not None and declared != version:
            message = f"the key says version {version!r}, the field says {declared!r}"
            self._problem(found, ("version",), "AH006", message, "leave one of them out")
            return
        version = version or declared or ""
        if not version:
            self._problem(
                found,
                (),
                "AH005",
                f"models.{text} has no version",
                "add `version: 1.0.0`, or write the key as `name@1.0.0`",
                key=True,
            )
            return
        found.name = f"{name}@{version}"
        self._add_model(found, name, version, data.get("aliases", ()), ("aliases",))

    def _collect_produced(self, found: _Found) -> None:
        produces = found.data.get("produces")
        is_merge = found.data["type"] == "merge"
        if produces is None:
            if is_merge:
                hint = "add `produces: {model: NAME, version: 1.0.0}`"
                message = f"the merge reactor {found.name} does not say what it produces"
                self._problem(found, (), "AH024", message, hint, key=True)
            return
        if not is_merge:
            message = f"a reactor of type {found.data['type']} produces no model"
            self._problem(found, ("produces",), "AH024", message, "only `type: merge` does")
            return
        name, version = produces["model"], produces["version"]
        model = _Found(
            name=f"{name}@{version}",
            data=produces,
            source=found.source,
            pointer=(*found.pointer, "produces"),
        )
        if self._add_model(model, name, version, produces.get("aliases", ()), ("aliases",)):
            self.producers[model.name] = found

    def _add_model(
        self, found: _Found, name: str, version: str, aliases: Sequence[str], pointer: Pointer
    ) -> bool:
        if found.name in self.models:
            self._twice(found, self.models[found.name])
            return False
        self.models[found.name] = found
        self.versions.setdefault(name, []).append(version)
        for index, alias in enumerate(aliases):
            other = self.aliases.setdefault((name, alias), found.name)
            if other != found.name:
                message = f"the alias {name}:{alias} already points to {other}"
                self._problem(found, (*pointer, index), "AH013", message, None)
        return True

    # Declarations

    def _declare(self) -> Iterator[Declaration | None]:
        for found in self.strategies.values():
            yield self._strategy(found)
        reactors = [self._reactor(found) for found in self.reactors.values()]
        for found in self.models.values():
            if found.name in self.producers:
                yield self._produced(found)
            else:
                yield self._model(found)
        yield from reactors

    def _strategy(self, found: _Found) -> Declaration | None:
        uses = found.data["uses"]
        if uses not in self.plugins.strategies:
            self._unknown_strategy(found, ("uses",), uses, self.plugins.strategies)
            return None
        schema = self.plugins.strategies[uses].item.params_schema
        spec = StrategySpec(
            uses=uses,
            params=with_defaults(found.data.get("params", {}), schema),
            description=found.data.get("description"),
            tags=found.data.get("tags", {}),
        )
        return self._declaration(STRATEGY, found, spec)

    def _model(self, found: _Found) -> Declaration | None:
        architecture = self._architecture(found)
        spec = ModelSpec(
            type=found.data.get("type", "transformer"),
            architecture=architecture or {},
            description=found.data.get("description"),
            aliases=tuple(found.data.get("aliases", ())),
            tags=found.data.get("tags", {}),
            weights=self._weights(found),
        )
        return self._declaration(MODEL, found, spec)

    def _produced(self, found: _Found) -> Declaration | None:
        reactor = self.producers[found.name]
        spec = self.specs.get(reactor.name)
        model = self._like(found.name, set())
        if spec is None or model is None:
            return None
        kind, architecture = model
        produced = ModelSpec(
            type=kind,
            architecture=architecture,
            description=found.data.get("description"),
            aliases=tuple(found.data.get("aliases", ())),
            tags=found.data.get("tags", {}),
            produced_by=f"{REACTOR}/{reactor.name}",
        )
        inputs = [*(m.model for m in spec.members), *([spec.base] if spec.base else [])]
        depends_on = tuple(Key(kind=MODEL, name=n) for n in inputs if n in self.models)
        return self._declaration(MODEL, found, produced, depends_on, protector=reactor)

    def _like(self, name: str, seen: set[str]) -> tuple[str, JsonObject] | None:
        """Type and architecture of a model; a produced one has its base's or first member's."""
        if name in self.used:
            return self.used[name].type, self.used[name].architecture
        if name in seen or name not in self.models:
            return None
        found = self.models[name]
        if name not in self.producers:
            return found.data.get("type", "transformer"), self._architecture(found) or {}
        spec = self.specs.get(self.producers[name].name)
        if spec is None:
            return None
        return self._like(spec.base or spec.members[0].model, seen | {name})

    def _reactor(self, found: _Found) -> Declaration | None:
        count = len(self.problems)
        strategy = self._strategy_of(found)
        members = self._members(found)
        base = found.data.get("base")
        base_name = self._model_name(found, ("base",), base) if base else None
        interactions = self._interactions(found, {m.model for m in members})
        if strategy is None or len(self.problems) > count:
            return None
        uses, params = strategy
        produces = found.data.get("produces")
        spec = ReactorSpec(
            type=found.data["type"],
            strategy=found.data["strategy"],
            uses=uses,
            params=params,
            members=tuple(members),
            base=base_name,
            interactions=tuple(interactions),
            produces=f"{produces['model']}@{produces['version']}" if produces else None,
            config=found.data.get("config", {}),
            description=found.data.get("description"),
            tags=found.data.get("tags", {}),
        )
        self._check_fit(found, spec)
        self.specs[found.name] = spec
        return self._declaration(REACTOR, found, spec, self._reactor_needs(spec))

    def _reactor_needs(self, spec: ReactorSpec) -> tuple[Key, ...]:
        models = [m.model for m in spec.members] + [n for n in (spec.base, spec.produces) if n]
        keys = [Key(kind=MODEL, name=name) for name in models if name in self.models]
        if spec.strategy in self.strategies:
            keys.append(Key(kind=STRATEGY, name=spec.strategy))
        return tuple(dict.fromkeys(keys))

    def _strategy_of(self, found: _Found) -> tuple[str, JsonObject] | None:
        name, inline = found.data["strategy"], found.data.get("params", {})
        declared = self.strategies.get(name)
        uses = declared.data["uses"] if declared else name
        if uses not in self.plugins.strategies:
            if declared is None:
                known = [*self.plugins.strategies, *self.strategies]
                self._unknown_strategy(found, ("strategy",), name, known)
            return None
        schema = self.plugins.strategies[uses].item.params_schema
        params = {**(declared.data.get("params", {}) if declared else {}), **inline}
        if declared and inline:
            for pointer, code, message in params_problems(params, schema):
                self._problem(found, ("params", *pointer), code, message, None)
        return uses, with_defaults(params, schema)

    def _members(self, found: _Found) -> list[MemberSpec]:
        members: list[MemberSpec] = []
        for index, data in enumerate(found.data["members"]):
            pointer = ("members", index, "model")
            name = self._model_name(found, pointer, data["model"])
            if name is None:
                continue
            if any(member.model == name for member in members):
                self._problem(found, pointer, "AH013", f"{name} is already a member", None)
                continue
            members.append(
                MemberSpec(
                    model=name,
                    role=data.get("role", "secondary"),
                    weight=float(data.get("weight", 1.0)),
                    priority=data.get("priority"),
                )
            )
        return members

    def _interactions(self, found: _Found, members: set[str]) -> list[InteractionSpec]:
        edges: list[InteractionSpec] = []
        for index, data in enumerate(found.data.get("interactions", ())):
            ends = []
            for side in ("from", "to"):
                name = self._model_name(found, ("interactions", index, side), data[side])
                if name is not None and name not in members:
                    message = f"{name} is not a member of {found.name}"
                    self._problem(found, ("interactions", index, side), "AH020", message, None)
                ends.append(name or "")
            if ends[0] == ends[1] and ends[0]:
                message = f"{ends[0]} cannot interact with itself"
                self._problem(found, ("interactions", index, "to"), "AH023", message, None)
            edges.append(
                InteractionSpec(
                    source=ends[0],
                    target=ends[1],
                    kind=data["kind"],
                    weight=float(data.get("weight", 1.0)),
                )
            )
        return edges

    def _check_fit(self, found: _Found, spec: ReactorSpec) -> None:
        strategy = self.plugins.strategies[spec.uses].item
        needed = "weights" if spec.type == "merge" else "outputs"
        count = len(spec.members)
        if needed not in strategy.fuses:
            hint = f"it fuses {' and '.join(strategy.fuses)}; `arc-halo plugins` lists the others"
            message = f"the strategy {spec.uses!r} does not fuse {needed}"
            self._problem(found, ("strategy",), "AH023", message, hint)
        if count < strategy.min_members or count > (strategy.max_members or count):
            wanted = _range(strategy.min_members, strategy.max_members)
            message = f"the strategy {spec.uses!r} takes {wanted} members, not {count}"
            self._problem(found, ("members",), "AH023", message, None)
        if strategy.needs_base and spec.base is None:
            message = f"the strategy {spec.uses!r} needs a base model"
            self._problem(found, (), "AH023", message, "add `base: MODEL`", key=True)

    # References

    def _model_name(self, found: _Found, pointer: Pointer, text: str) -> str | None:
        reference = parse_reference(text)
        if reference is None:
            self._problem(found, pointer, "AH006", f"{text!r} is not a model reference", None)
            return None
        if reference.alias is not None:
            return self._by_alias(found, pointer, reference)
        if reference.version is not None:
            if str(reference) in self.models:
                return str(reference)
        elif len(versions := self.versions.get(reference.name, [])) == 1:
            return f"{reference.name}@{versions[0]}"
        elif versions:
            message = f"{text!r} could be version {' or '.join(sorted(versions))}"
            hint = f"write {reference.name}@{max(versions)}"
            self._problem(found, pointer, "AH022", message, hint)
            return None
        message = f"{'.'.join(map(str, found.pointer))} refers to the model {text!r}, "
        guess = did_you_mean(text, [*self.versions, *self.models])
        self._problem(found, pointer, "AH020", message + "which is not declared", guess)
        return None

    def _by_alias(self, found: _Found, pointer: Pointer, reference: ModelReference) -> str | None:
        assert reference.alias is not None
        pair = (reference.name, reference.alias)
        if pair in self.aliases:
            return self.aliases[pair]
        if self.registered is None:
            model = RegisteredModel(
                name=reference.name, version="0", type="other", architecture={}, root=None
            )
        elif pair in self.registered:
            model = self.registered[pair]
        else:
            message = f"no model has the alias {reference}, neither declared nor in the database"
            self._problem(found, pointer, "AH022", message, None)
            return None
        if model.full_name not in self.models:
            self.used[model.full_name] = model
        return model.full_name

    # Files

    def _architecture(self, found: _Found) -> JsonObject | None:
        value = found.data.get("architecture", {})
        if not isinstance(value, str):
            return dict(value)
        path = self._path(found, ("architecture",), value)
        if path is None:
            return None
        if path not in self.architectures:
            self.architectures[path] = self._read_architecture(found, path, value)
        return self.architectures[path]

    def _read_architecture(self, found: _Found, path: Path, label: str) -> JsonObject | None:
        try:
            if path.suffix in (".yaml", ".yml"):
                return dict(load.load_text(path.read_bytes(), path=path, label=label).data)
            value = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        except OSError as exc:
            self._problem(found, ("architecture",), "AH011", f"{label}: {exc.strerror}", None)
            return None
        except (ValueError, RecursionError) as exc:
            message = f"{label} is not JSON: {exc}"
            self._problem(found, ("architecture",), "AH011", message, None)
            return None
        if not isinstance(value, dict):
            self._problem(found, ("architecture",), "AH004", f"{label} is not a mapping", None)
            return None
        return value

    def _weights(self, found: _Found) -> WeightsSource | None:
        value = found.data.get("weights")
        if value is None:
            return None
        long: JsonObject = {"source": value} if isinstance(value, str) else value
        pointer: Pointer = ("weights",) if isinstance(value, str) else ("weights", "source")
        path = self._path(found, pointer, long["source"])
        if path is None:
            return None
        digest = long.get("digest")
        return WeightsSource(
            path=path,
            label=long["source"],
            format=long.get("format") or self._format(found, pointer, long["source"]),
            roots=tuple(p.resolve() for p in (self.head.path.parent, *self.allow_paths)),
            codec=long.get("codec"),
            digest=bytes.fromhex(digest.removeprefix("sha256:")) if digest else None,
        )

    def _format(self, found: _Found, pointer: Pointer, source: str) -> str:
        for name, provided in self.plugins.formats.items():
            if source.endswith(provided.item.suffixes):
                return name
        if not Path(source).suffix:
            return "safetensors"
        known = ", ".join(s for p in self.plugins.formats.values() for s in p.item.suffixes)
        message = f"no loaded plugin reads {Path(source).name!r}"
        self._problem(found, pointer, "AH032", message, f"readable are {known}")
        return "safetensors"

    def _path(self, found: _Found, pointer: Pointer, text: str) -> Path | None:
        try:
            return contained(self.head.path.parent, text, self.allow_paths)
        except PathRefusedError as exc:
            self._problem(found, pointer, "AH012", str(exc), "see `--allow-path DIR`")
            return None

    # The whole

    def _declaration(
        self,
        kind: str,
        found: _Found,
        spec: Any,
        depends_on: tuple[Key, ...] = (),
        *,
        protector: _Found | None = None,
    ) -> Declaration:
        data = (protector or found).data
        return Declaration(
            key=Key(kind=kind, name=found.name),
            spec=spec,
            lifecycle=Lifecycle(
                protected=data.get("protected", False),
                deletion=data.get("deletion", "delete"),
                renamed_from=found.data.get("renamed_from"),
                ignore=tuple(found.data.get("ignore", ())),
            ),
            where=found.where,
            depends_on=depends_on,
        )

    def _ordered(self, declarations: dict[Key, Declaration]) -> dict[Key, Declaration]:
        graph = {
            key: [need for need in declaration.depends_on if need in declarations]
            for key, declaration in declarations.items()
        }
        sorter = TopologicalSorter(graph)
        try:
            order = list(sorter.static_order())
        except CycleError as exc:
            self._cycle(exc.args[1])
            return declarations
        depth = _depths(graph, order)
        rank = {kind: index for index, kind in enumerate(KINDS)}
        order.sort(key=lambda key: (rank[key.kind], depth[key], key.name))
        return {key: declarations[key] for key in order}

    def _cycle(self, keys: Sequence[Key]) -> None:
        path = " -> ".join(str(key) for key in reversed(keys))
        found = self.models[keys[0].name]
        message = f"dependency cycle: {path}"
        hint = "a model cannot be made of itself; break one of these links"
        self._problem(found, (), "AH021", message, hint)

    # Problems

    def _problem(
        self,
        found: _Found,
        pointer: Pointer,
        code: str,
        message: str,
        hint: str | None,
        *,
        key: bool = False,
    ) -> None:
        self.problems.append(
            load.problem(
                found.source, (*found.pointer, *pointer), code, message, hint=hint, key=key
            )
        )

    def _twice(self, found: _Found, first: _Found) -> None:
        line = load.locate(first.source, first.pointer, key=True).line
        message = f"{found.name} is declared twice"
        hint = f"it is first declared at {first.source.label}:{line}"
        self._problem(found, (), "AH013", message, hint, key=True)

    def _unknown_strategy(self, found: _Found, pointer: Pointer, name: str, known: Any) -> None:
        hint = did_you_mean(name, known) or "`arc-halo plugins` lists what is loaded"
        self._problem(found, pointer, "AH032", f"unknown strategy {name!r}", hint)


def _depths(graph: Mapping[Key, Sequence[Key]], order: Sequence[Key]) -> dict[Key, int]:
    depths: dict[Key, int] = {}
    for key in order:
        depths[key] = 1 + max((depths[need] for need in graph[key]), default=-1)
    return depths


def _range(low: int, high: int | None) -> str:
    if high is None:
        return f"at least {low}"
    return f"exactly {low}" if low == high else f"{low} to {high}"


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
