"""From loaded YAML to desired state: names become references, `produces` becomes a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from arc_halo.architectures import changed_architecture
from arc_halo.config import parse_size
from arc_halo.errors import ManifestError
from arc_halo.manifest import load
from arc_halo.manifest.base_plugins import explained
from arc_halo.manifest.caches import cache_spec
from arc_halo.manifest.collect import Names
from arc_halo.manifest.documents import (
    INFERENCE,
    MODEL,
    REACTOR,
    STRATEGY,
    TRAINING,
    BodiesSetting,
    Declaration,
    Desired,
    Lifecycle,
    ModelSpec,
    ReactorSpec,
    Settings,
    Spec,
    StrategySpec,
    WeightsSource,
)
from arc_halo.manifest.footprint import (
    environment_of,
    files_of,
    manifest_digest,
    variable_digests,
)
from arc_halo.manifest.graph import cycles, ordered
from arc_halo.manifest.model_files import ModelFiles
from arc_halo.manifest.params import with_defaults
from arc_halo.manifest.problems import Found, Problems
from arc_halo.manifest.reactors import (
    WORDS,
    ReactorResolver,
    adapter_texts,
    named_members,
    vocabulary_of,
)
from arc_halo.manifest.references import References, Registered
from arc_halo.manifest.renames import check_renames
from arc_halo.manifest.secrecy import literal_secrets
from arc_halo.manifest.trainings import TrainingResolver
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
    check_renames(names, problems)
    references = References(names=names, problems=problems, registered=registered)
    files = ModelFiles(
        directory=head.path.parent, allow_paths=allow_paths, plugins=plugins, problems=problems
    )
    reactors = ReactorResolver(
        plugins=plugins, problems=problems, names=names, references=references
    )
    declarations = _Resolver(
        plugins=plugins,
        problems=problems,
        names=names,
        references=references,
        files=files,
        reactors=reactors,
        trainings=TrainingResolver(problems=problems, references=references),
    ).declarations()
    if problems.listed:
        raise ManifestError(explained(problems.listed, head, plugins))
    return Desired(
        project=head.data["project"],
        declarations=declarations,
        settings=read_settings(head.data),
        manifest_digest=manifest_digest(sources, plugins, files.digests),
        registered=references.used,
        sources={source.label: source for source in sources},
        env=environment_of(sources),
        files=files_of(sources, plugins, [*files.digests, *files.tokenizers]),
        variables=variable_digests(sources),
    )


def alias_references(sources: Sequence[load.Source]) -> set[tuple[str, str]]:
    """The (name, alias) pairs that are referred to and no model declares: to be looked up."""
    wanted = set()
    for source in sources:
        for text in _model_texts(source.data):
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
        retain_revisions=settings.get("retain_revisions", defaults.retain_revisions),
        allowed_hosts=tuple(settings.get("allow", {}).get("hosts", ())),
        allowed_secrets=tuple(settings.get("allow", {}).get("secrets", ())),
        executor=settings.get("executor", defaults.executor),
        bodies=BodiesSetting(**storage["bodies"]) if "bodies" in storage else None,
    )


def runner_of(data: JsonObject, plugins: PluginManager) -> JsonObject | None:
    """The runner that a model names, its params with their defaults."""
    if (runner := data.get("runner")) is None:
        return None
    schema = plugins.runner(runner["uses"]).item.params_schema
    params = with_defaults(runner.get("params", {}), schema)
    return {"uses": runner["uses"], "params": params}


def runner_problems(found: Found, problems: Problems) -> None:
    """Tell of secrets in the params of a model's runner: what is there is stored, and shown."""
    params = (found.data.get("runner") or {}).get("params", {})
    for pointer in literal_secrets(params):
        message = "a secret may not stand in a manifest"
        hint = "put it into an environment variable, and name that here, in capitals"
        problems.add(found, ("runner", "params", *pointer), "AH006", message, hint)


def _model_texts(data: JsonObject) -> Iterator[str]:
    """Every reference to a model that a file holds."""
    for model in data.get("models", {}).values():
        weights = model.get("weights")
        if isinstance(weights, dict) and "delta_from" in weights:
            yield weights["delta_from"]
    for reactor in data.get("reactors", {}).values():
        if reactor.get("base"):
            yield reactor["base"]
        for member in reactor.get("members", ()):
            yield member["model"]
            yield from adapter_texts(member)
        yield from named_members(reactor)
        if (text := vocabulary_of(reactor)["of"]) not in WORDS:
            yield text
        for edge in reactor.get("interactions", ()):
            yield edge["from"]
            yield edge["to"]
    for training in data.get("training", {}).values():
        yield training["model"]


@dataclass(slots=True, kw_only=True)
class _Resolver:
    """Turns what was collected into declarations."""

    plugins: PluginManager
    problems: Problems
    names: Names
    references: References
    files: ModelFiles
    reactors: ReactorResolver
    trainings: TrainingResolver
    specs: dict[str, ReactorSpec] = field(default_factory=dict)

    def declarations(self) -> dict[Key, Declaration]:
        """Every declaration, ordered; what has a problem is left out."""
        found = {d.key: d for d in self._declare() if d is not None}
        for cycle in cycles(found):
            path = " -> ".join(map(str, cycle))
            hint = "a model cannot be made of itself; break one of these links"
            model = self.names.models[cycle[0].name]
            self.problems.add(model, (), "AH021", f"dependency cycle: {path}", hint)
        return found if self.problems.listed else ordered(found)

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
        for found in self.names.trainings.values():
            yield self._training(found)
        for found in self.names.caches.values():
            spec = cache_spec(found, self.plugins, self.problems)
            yield self._declaration(INFERENCE, found, spec)

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
        runner_problems(found, self.problems)
        architecture = self.files.architecture(found)
        weights = self._weights(found)
        spec = ModelSpec(
            type=found.data.get("type", "transformer"),
            architecture=architecture or {},
            description=found.data.get("description"),
            aliases=tuple(found.data.get("aliases", ())),
            tags=found.data.get("tags", {}),
            weights=weights,
            tokenizer=self.files.tokenizer(found),
            runner=runner_of(found.data, self.plugins),
        )
        return self._declaration(MODEL, found, spec, self._delta_base(weights))

    def _weights(self, found: Found) -> WeightsSource | None:
        weights = self.files.weights(found)
        value = found.data.get("weights")
        if weights is None or not isinstance(value, dict) or "delta_from" not in value:
            return weights
        base = self.references.find(found, ("weights", "delta_from"), value["delta_from"])
        return replace(weights, delta_from=base)

    def _delta_base(self, weights: WeightsSource | None) -> tuple[Key, ...]:
        name = weights.delta_from if weights else None
        return (Key(kind=MODEL, name=name),) if name in self.names.models and name else ()

    def _produced(self, found: Found) -> Declaration | None:
        reactor = self.names.producers[found.name]
        spec = self.specs.get(reactor.name)
        model = self._like(found.name, set())
        runner_problems(found, self.problems)
        if spec is None or model is None:
            return None
        kind, architecture = model
        produced = ModelSpec(
            type=kind,
            architecture=architecture,
            description=found.data.get("description"),
            aliases=tuple(found.data.get("aliases", ())),
            tags=found.data.get("tags", {}),
            runner=runner_of(found.data, self.plugins),
            produced_by=f"{REACTOR}/{reactor.name}",
        )
        depends_on = tuple(Key(kind=MODEL, name=n) for n in spec.models if n in self.names.models)
        return self._declaration(MODEL, found, produced, depends_on, protector=reactor)

    def _like(self, name: str, seen: set[str]) -> tuple[str, JsonObject] | None:
        """Type and architecture of a model; a produced one has its base's or first member's."""
        if name in self.references.used:
            return self.references.used[name].type, self.references.used[name].architecture
        if name in seen:
            return "other", {}  # a cycle, which is told of once all declarations are known
        if name not in self.names.models:
            return None
        found = self.names.models[name]
        if name not in self.names.producers:
            return found.data.get("type", "transformer"), self.files.architecture(found) or {}
        spec = self.specs.get(self.names.producers[name].name)
        if spec is None:
            return None
        found_like = self._like(spec.base or spec.members[0].model, seen | {name})
        if found_like is None:
            return None
        kind, architecture = found_like
        return kind, changed_architecture(architecture, layers=spec.layers, dtype=spec.out_dtype)

    def _reactor(self, found: Found) -> Declaration | None:
        spec = self.reactors.spec(found)
        if spec is None:
            return None
        self.specs[found.name] = spec
        return self._declaration(REACTOR, found, spec, self._needs(spec))

    def _training(self, found: Found) -> Declaration | None:
        spec = self.trainings.spec(found)
        if spec is None:
            return None
        if (model := self._like(spec.model, set())) is not None:
            self.trainings.check_layers(found, spec, model[1])
        needs = (Key(kind=MODEL, name=spec.model),) if spec.model in self.names.models else ()
        return self._declaration(TRAINING, found, spec, needs)

    def _needs(self, spec: ReactorSpec) -> tuple[Key, ...]:
        models = [*spec.models, *([spec.produces] if spec.produces else [])]
        keys = [Key(kind=MODEL, name=name) for name in models if name in self.names.models]
        if spec.strategy in self.names.strategies:
            keys.append(Key(kind=STRATEGY, name=spec.strategy))
        return tuple(dict.fromkeys(keys))

    def _check_ignored(self, kind: str, found: Found, spec: Spec) -> None:
        for index, field_name in enumerate(found.data.get("ignore", ())):
            managed = [*spec.as_json(), *(["weights", "tokenizer"] if kind == MODEL else [])]
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
