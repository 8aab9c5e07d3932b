"""From loaded YAML to desired state: names become references, `produces` becomes a graph."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arc_halo.config import parse_size
from arc_halo.errors import ManifestError
from arc_halo.manifest import load
from arc_halo.manifest.collect import Names
from arc_halo.manifest.documents import (
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
    Settings,
    Spec,
    StrategySpec,
)
from arc_halo.manifest.graph import DependencyCycleError, ordered
from arc_halo.manifest.model_files import ModelFiles
from arc_halo.manifest.params import params_problems, with_defaults
from arc_halo.manifest.problems import Found, Problems
from arc_halo.manifest.references import References, Registered
from arc_halo.names import did_you_mean, parse_reference
from arc_halo.plugins import PluginManager
from arc_halo.types import JsonObject, Key


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
    head = sources[0]
    problems = Problems()
    names = Names(plugins=plugins, problems=problems)
    names.collect(sources)
    references = References(names=names, problems=problems, registered=registered)
    files = ModelFiles(
        directory=head.path.parent, allow_paths=allow_paths, plugins=plugins, problems=problems
    )
    declarations = _Resolver(
        plugins=plugins, problems=problems, names=names, references=references, files=files
    ).declarations()
    if problems.listed:
        raise ManifestError(problems.listed)
    return Desired(
        project=head.data["project"],
        declarations=declarations,
        settings=read_settings(head.data),
        manifest_digest=manifest_digest(sources, plugins),
        registered=references.used,
        sources={source.label: source for source in sources},
    )


def alias_references(sources: Sequence[load.Source]) -> set[tuple[str, str]]:
    """The (name, alias) pairs that reactors refer to and no model declares: to be looked up."""
    wanted = set()
    for source in sources:
        for reactor in source.data.get("reactors", {}).values():
            for text in _model_texts(reactor):
                reference = parse_reference(text)
                if reference is not None and reference.alias is not None:
                    wanted.add((reference.name, reference.alias))
    return wanted - _declared_aliases(sources) if wanted else wanted


def _declared_aliases(sources: Sequence[load.Source]) -> set[tuple[str, str]]:
    found = set()
    for source in sources:
        for name, model in source.data.get("models", {}).items():
            found |= {(name.partition("@")[0], alias) for alias in model.get("aliases", ())}
        for reactor in source.data.get("reactors", {}).values():
            produces = reactor.get("produces") or {}
            found |= {(produces["model"], alias) for alias in produces.get("aliases", ())}
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
class _Resolver:
    """Turns what was collected into declarations."""

    plugins: PluginManager
    problems: Problems
    names: Names
    references: References
    files: ModelFiles
    specs: dict[str, ReactorSpec] = field(default_factory=dict)

    def declarations(self) -> dict[Key, Declaration]:
        """Every declaration, ordered; what has a problem is left out."""
        found = {d.key: d for d in self._declare() if d is not None}
        try:
            return ordered(found)
        except DependencyCycleError as exc:
            hint = "a model cannot be made of itself; break one of these links"
            model = self.names.models[exc.keys[0].name]
            self.problems.add(model, (), "AH021", f"dependency cycle: {exc}", hint)
            return found

    def _declare(self) -> Iterator[Declaration | None]:
        for found in self.names.strategies.values():
            yield self._strategy(found)
        reactors = [self._reactor(found) for found in self.names.reactors.values()]
        for found in self.names.models.values():
            if found.name in self.names.producers:
                yield self._produced(found)
            else:
                yield self._model(found)
        yield from reactors

    def _strategy(self, found: Found) -> Declaration | None:
        uses = found.data["uses"]
        if uses not in self.plugins.strategies:
            self.problems.unknown_strategy(found, ("uses",), uses, self.plugins.strategies)
            return None
        schema = self.plugins.strategies[uses].item.params_schema
        spec = StrategySpec(
            uses=uses,
            params=with_defaults(found.data.get("params", {}), schema),
            description=found.data.get("description"),
            tags=found.data.get("tags", {}),
        )
        return self._declaration(STRATEGY, found, spec)

    def _model(self, found: Found) -> Declaration | None:
        architecture = self.files.architecture(found)
        spec = ModelSpec(
            type=found.data.get("type", "transformer"),
            architecture=architecture or {},
            description=found.data.get("description"),
            aliases=tuple(found.data.get("aliases", ())),
            tags=found.data.get("tags", {}),
            weights=self.files.weights(found),
        )
        return self._declaration(MODEL, found, spec)

    def _produced(self, found: Found) -> Declaration | None:
        reactor = self.names.producers[found.name]
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
        depends_on = tuple(Key(kind=MODEL, name=n) for n in inputs if n in self.names.models)
        return self._declaration(MODEL, found, produced, depends_on, protector=reactor)

    def _like(self, name: str, seen: set[str]) -> tuple[str, JsonObject] | None:
        """Type and architecture of a model; a produced one has its base's or first member's."""
        if name in self.references.used:
            return self.references.used[name].type, self.references.used[name].architecture
        if name in seen or name not in self.names.models:
            return None
        found = self.names.models[name]
        if name not in self.names.producers:
            return found.data.get("type", "transformer"), self.files.architecture(found) or {}
        spec = self.specs.get(self.names.producers[name].name)
        if spec is None:
            return None
        return self._like(spec.base or spec.members[0].model, seen | {name})

    def _reactor(self, found: Found) -> Declaration | None:
        count = len(self.problems.listed)
        strategy = self._strategy_of(found)
        members = self._members(found)
        base = found.data.get("base")
        base_name = self.references.find(found, ("base",), base) if base else None
        interactions = self._interactions(found, {m.model for m in members})
        if strategy is None or len(self.problems.listed) > count:
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
        keys = [Key(kind=MODEL, name=name) for name in models if name in self.names.models]
        if spec.strategy in self.names.strategies:
            keys.append(Key(kind=STRATEGY, name=spec.strategy))
        return tuple(dict.fromkeys(keys))

    def _strategy_of(self, found: Found) -> tuple[str, JsonObject] | None:
        name, inline = found.data["strategy"], found.data.get("params", {})
        declared = self.names.strategies.get(name)
        uses = declared.data["uses"] if declared else name
        if uses not in self.plugins.strategies:
            if declared is None:
                known = [*self.plugins.strategies, *self.names.strategies]
                self.problems.unknown_strategy(found, ("strategy",), name, known)
            return None
        schema = self.plugins.strategies[uses].item.params_schema
        params = {**(declared.data.get("params", {}) if declared else {}), **inline}
        if declared and inline:
            for pointer, code, message in params_problems(params, schema):
                self.problems.add(found, ("params", *pointer), code, message, None)
        return uses, with_defaults(params, schema)

    def _members(self, found: Found) -> list[MemberSpec]:
        members: list[MemberSpec] = []
        for index, data in enumerate(found.data["members"]):
            pointer = ("members", index, "model")
            name = self.references.find(found, pointer, data["model"])
            if name is None:
                continue
            if any(member.model == name for member in members):
                self.problems.add(found, pointer, "AH013", f"{name} is already a member", None)
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

    def _interactions(self, found: Found, members: set[str]) -> list[InteractionSpec]:
        edges: list[InteractionSpec] = []
        for index, data in enumerate(found.data.get("interactions", ())):
            ends = []
            for side in ("from", "to"):
                name = self.references.find(found, ("interactions", index, side), data[side])
                if name is not None and name not in members:
                    message = f"{name} is not a member of {found.name}"
                    self.problems.add(found, ("interactions", index, side), "AH020", message, None)
                ends.append(name or "")
            if ends[0] == ends[1] and ends[0]:
                message = f"{ends[0]} cannot interact with itself"
                self.problems.add(found, ("interactions", index, "to"), "AH023", message, None)
            edges.append(
                InteractionSpec(
                    source=ends[0],
                    target=ends[1],
                    kind=data["kind"],
                    weight=float(data.get("weight", 1.0)),
                )
            )
        return edges

    def _check_fit(self, found: Found, spec: ReactorSpec) -> None:
        strategy = self.plugins.strategies[spec.uses].item
        needed = "weights" if spec.type == "merge" else "outputs"
        count = len(spec.members)
        if needed not in strategy.fuses:
            hint = f"it fuses {' and '.join(strategy.fuses)}; `arc-halo plugins` lists the others"
            message = f"the strategy {spec.uses!r} does not fuse {needed}"
            self.problems.add(found, ("strategy",), "AH023", message, hint)
        if count < strategy.min_members or count > (strategy.max_members or count):
            wanted = _range(strategy.min_members, strategy.max_members)
            message = f"the strategy {spec.uses!r} takes {wanted} members, not {count}"
            self.problems.add(found, ("members",), "AH023", message, None)
        if strategy.needs_base and spec.base is None:
            message = f"the strategy {spec.uses!r} needs a base model"
            self.problems.add(found, (), "AH023", message, "add `base: MODEL`", key=True)

    # References

    def _check_ignored(self, kind: str, found: Found, spec: Spec) -> None:
        for index, field_name in enumerate(found.data.get("ignore", ())):
            managed = [*spec.as_json(), *(["weights"] if kind == MODEL else [])]
            if field_name not in managed:
                message = f"a {kind} has no field {field_name!r} to ignore"
                hint = did_you_mean(field_name, managed) or f"it has {', '.join(managed)}"
                self.problems.add(found, ("ignore", index), "AH003", message, hint)

    def _declaration(
        self,
        kind: str,
        found: Found,
        spec: Spec,
        depends_on: tuple[Key, ...] = (),
        *,
        protector: Found | None = None,
    ) -> Declaration:
        data = (protector or found).data
        self._check_ignored(kind, found, spec)
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


def _range(low: int, high: int | None) -> str:
    if high is None:
        return f"at least {low}"
    return f"exactly {low}" if low == high else f"{low} to {high}"
