"""From declarations to resources whose weights are known as far as they can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from arc_halo.architectures import changed_architecture
from arc_halo.errors import IncompatibleModelsError, ManifestError
from arc_halo.fusion import compatibility
from arc_halo.fusion.estimating import Estimate, Speeds, estimate
from arc_halo.fusion.planning import plan_tensors
from arc_halo.fusion.recipes import FusionRecipe, recipe_of
from arc_halo.fusion.tensor_recipes import TensorRecipe
from arc_halo.manifest.documents import (
    MODEL,
    REACTOR,
    Declaration,
    Desired,
    ModelSpec,
    ReactorSpec,
    TrainingSpec,
    spec_digest,
)
from arc_halo.manifest.tokenizers import Tokenizer
from arc_halo.plugins import PluginManager
from arc_halo.reconcile.changes import Build, Conflict, DesiredResource, FuseBuild, ImportBuild
from arc_halo.reconcile.sources import Sources, not_there, source_of
from arc_halo.reconcile.tokenizers import Tokenizers
from arc_halo.store import builds
from arc_halo.store.rows import Connection
from arc_halo.tensors.digests import format_digest
from arc_halo.training.recomputing import recomputing_text
from arc_halo.types import JsonObject, Key


class Planner:
    """Turns declarations into resources whose weights are known as far as they can be."""

    def __init__(
        self,
        desired: Desired,
        sources: Sources,
        plugins: PluginManager,
        recorded: Mapping[Key, JsonObject],
        tokenizers: Tokenizers,
        conn: Connection | None,
    ) -> None:
        self.notes: list[str] = []
        self.conflicts: list[Conflict] = []
        self._desired = desired
        self._sources = sources
        self._plugins = plugins
        self._recorded = recorded
        self._tokenizers = tokenizers
        self._conn = conn
        self._plans: dict[str, list[TensorRecipe] | None] = {}
        self._speeds = Speeds(conn)
        self._stored: dict[bytes, Mapping[str, compatibility.Known] | None] = {}
        self._weights: dict[str, JsonObject | None] = {
            name: _weights_json(model.root, {}, None) if model.root else None
            for name, model in desired.registered.items()
        }

    def resources(self) -> dict[Key, DesiredResource]:
        self._check_absent()
        merged = self._merges()
        return {
            key: self._resource(declaration, merged.get(key))
            for key, declaration in self._desired.declarations.items()
        }

    def _resource(self, declaration: Declaration, merge: Build | None) -> DesiredResource:
        spec = declaration.spec.as_json()
        build = merge
        if isinstance(declaration.spec, ModelSpec):
            name = declaration.key.name
            spec["weights"] = self._weights[name]
            spec["tokenizer"] = self._tokenizers.document(name)
            spec["architecture"] = changed_architecture(
                spec["architecture"], vocabulary=self._tokenizers.rows(name)
            )
            build = build or self._import(declaration)
        return DesiredResource(
            key=declaration.key,
            spec=spec,
            digest=spec_digest(spec),
            lifecycle=declaration.lifecycle,
            source_file=declaration.where.file,
            build=build,
            remark=self._remark(declaration),
        )

    def _remark(self, declaration: Declaration) -> str | None:
        """What the gradient checkpointing of a training saves."""
        spec = declaration.spec
        if not isinstance(spec, TrainingSpec) or spec.gradient_checkpointing is None:
            return None
        return recomputing_text(self._architecture(spec.model), spec.gradient_checkpointing)

    def _architecture(self, model: str) -> JsonObject:
        if model in self._desired.registered:
            return self._desired.registered[model].architecture
        spec = self._desired.declarations[Key(kind=MODEL, name=model)].spec
        assert isinstance(spec, ModelSpec)
        return spec.architecture

    def _import(self, declaration: Declaration) -> Build | None:
        source = source_of(declaration)
        facts = self._sources.facts.get(declaration.key)
        if source is None or facts is None:
            return None
        return ImportBuild(
            source=source,
            root=facts.root,
            size_bytes=facts.size_bytes,
            tensor_count=facts.tensor_count,
            delta_root=weights_root(self._weights.get(source.delta_from or "")),
        )

    def _merges(self) -> dict[Key, Build]:
        """The build of each merged model, level by level, so that one query serves a level."""
        for key, declaration in self._desired.declarations.items():
            if key.kind == MODEL and key not in self._desired.merges:
                self._weights[key.name] = self._imported(key, declaration)
        waiting = dict(self._desired.merges)
        found: dict[Key, Build] = {}
        while waiting:
            ready = {
                key: spec
                for key, spec in waiting.items()
                if all(name in self._weights for name in spec.models)
            }
            if not ready:
                break
            self._merge_level(ready, found)
            waiting = {key: spec for key, spec in waiting.items() if key not in ready}
        return found

    def _merge_level(self, level: Mapping[Key, ReactorSpec], found: dict[Key, Build]) -> None:
        tokenizers = {key: self._tokenizers.of_merge(spec) for key, spec in level.items()}
        recipes = {
            key: known_recipe(
                spec,
                self._plugins,
                self._roots(spec),
                self._architectures(spec),
                tokenizers[key],
            )
            for key, spec in level.items()
        }
        keys = [recipe.key for recipe in recipes.values() if recipe is not None]
        roots = builds.roots_by_key(self._conn, keys) if self._conn and keys else {}
        for key, spec in level.items():
            recipe = recipes[key]
            root = roots.get(recipe.key) if recipe else None
            metadata = self._metadata(spec)
            self._weights[key.name] = _weights_json(root, metadata, None)
            declaration = self._desired.declarations[key]
            assert isinstance(declaration.spec, ModelSpec)
            reactor = (declaration.spec.produced_by or "").removeprefix("reactor/")
            self._check_inputs(key, spec)
            planned = self._planned(spec) if root is None else None
            found[key] = FuseBuild(
                reactor=reactor,
                spec=spec,
                recipe=recipe,
                roots=self._roots(spec),
                architectures=self._architectures(spec),
                estimate=self._estimate(spec, planned) if planned else None,
                tokenizers=tokenizers[key] or {},
            )
            self._tokenizers.add_merge(key.name, spec)

    def _check_inputs(self, key: Key, spec: ReactorSpec) -> None:
        for name in needed_inputs(spec, self._plugins):
            if self._weights[name] is None:
                self.conflicts.append(
                    Conflict(
                        key=key,
                        code="AH064",
                        message=f"{key} is to be fused from model/{name}, which has no weights",
                        hint=f"declare `weights:` for {name}",
                    )
                )
        self.conflicts += self._tokenizers.conflicts(key, spec)

    def _estimate(self, spec: ReactorSpec, planned: list[TensorRecipe]) -> Estimate:
        recipe = recipe_of(
            spec,
            self._plugins.strategy(spec.uses),
            self._roots(spec),
            self._architectures(spec),
            self._tokenizers.of_merge(spec),
        )
        return estimate(self._conn, recipe, planned, self._speeds)

    def _tensors(self, name: str) -> Mapping[str, compatibility.Known] | None:
        """The tensors of a model: as they are stored, else of its file or what it will have."""
        key = Key(kind=MODEL, name=name)
        if (stored := self._stored_tensors(weights_root(self._weights[name]))) is not None:
            return stored
        if key in self._desired.merges:
            return self._merged_tensors(self._desired.merges[key])
        if key not in self._sources.facts:
            return None
        source = source_of(self._desired.declarations[key])
        assert source is not None
        with self._plugins.format(source.format).open(source.path) as reader:
            return {
                tensor.name: compatibility.Described(tensor.dtype, tensor.shape)
                for tensor in reader.tensors
            }

    def _stored_tensors(self, root: bytes | None) -> Mapping[str, compatibility.Known] | None:
        if root is None or self._conn is None:
            return None
        if root not in self._stored:
            found = builds.sets_by_root(self._conn, [root]).get(root)
            tensors = builds.set_tensors(self._conn, found.id) if found else None
            self._stored[root] = {t.name: t for t in tensors} if tensors is not None else None
        return self._stored[root]

    def _merged_tensors(self, spec: ReactorSpec) -> Mapping[str, compatibility.Known] | None:
        planned = self._planned(spec)
        if planned is None:
            return None
        return {each.name: compatibility.Described(each.dtype, each.shape) for each in planned}

    def _planned(self, spec: ReactorSpec) -> list[TensorRecipe] | None:
        """The tensors of a merge, or None while an input's or its tokenizer are not known.

        Refuses, before anything is imported, what could not be fused afterwards.
        """
        name = spec.produces or ""
        if name not in self._plans:
            self._plans[name] = self._plan(spec)
        return self._plans[name]

    def _plan(self, spec: ReactorSpec) -> list[TensorRecipe] | None:
        tokenizers = self._tokenizers.of_merge(spec)
        names = needed_inputs(spec, self._plugins)
        tables = {
            name: compatibility.Table(name, tensors)
            for name in names
            if (tensors := self._tensors(name)) is not None
        }
        if len(tables) < len(names) or tokenizers is None:
            return None
        strategy = self._plugins.strategy(spec.uses)
        recipe = recipe_of(spec, strategy, self._roots(spec), self._architectures(spec), tokenizers)
        base = tables[recipe.base.model] if recipe.base else None
        try:
            return plan_tensors(recipe, [tables[m.model] for m in spec.members], base, tables)
        except IncompatibleModelsError as exc:
            where = self._place(spec)
            raise IncompatibleModelsError(f"{where}: {exc.message}", hint=exc.hint) from exc

    def _place(self, spec: ReactorSpec) -> str:
        """Where the reactor of a merge is declared."""
        produced = self._desired.declarations[Key(kind=MODEL, name=spec.produces or "")]
        assert isinstance(produced.spec, ModelSpec)
        name = (produced.spec.produced_by or "").removeprefix("reactor/")
        reactor = self._desired.declarations[Key(kind=REACTOR, name=name)]
        problem = self._desired.problem(reactor, (), "AH070", "", None)
        return f"{problem.file}:{problem.line}: reactors.{name}"

    def _architectures(self, spec: ReactorSpec) -> dict[str, JsonObject]:
        return architectures(self._desired, spec)

    def _roots(self, spec: ReactorSpec) -> dict[str, bytes | None]:
        return {name: weights_root(self._weights[name]) for name in spec.models}

    def _metadata(self, spec: ReactorSpec) -> JsonObject:
        """A merged file says of itself what its base's, or first member's, says."""
        weights = self._weights[spec.base or spec.members[0].model] or {}
        return dict(weights.get("metadata") or {})

    def _imported(self, key: Key, declaration: Declaration) -> JsonObject | None:
        facts = self._sources.facts.get(key)
        if facts is not None:
            source = source_of(declaration)
            return _weights_json(facts.root, facts.metadata, source.label if source else None)
        if key not in self._recorded:
            return None
        source = source_of(declaration)
        label = source.label if source else ""
        self.notes.append(f"{key}: {label} is not here; its weights are kept as recorded")
        return self._recorded[key]

    def _check_absent(self) -> None:
        problems = []
        for key in self._sources.absent:
            declaration = self._desired.declarations[key]
            source = source_of(declaration)
            assert source is not None
            recorded = self._recorded.get(key, {})
            root = weights_root(recorded)
            if recorded.get("source") == source.label and source.digest in (None, root):
                continue
            if recorded.get("source") == source.label and root is not None:
                problems.append(
                    self._desired.problem(
                        declaration,
                        ("weights", "digest"),
                        "AH063",
                        f"{source.label} is not here, and was imported as {format_digest(root)}, "
                        f"not as {key} declares",
                        "put the file in its place, or change `weights.digest`",
                    )
                )
                continue
            problems.append(not_there(self._desired, declaration))
        if problems:
            raise ManifestError(problems)


def known_recipe(
    spec: ReactorSpec,
    plugins: PluginManager,
    roots: Mapping[str, bytes | None],
    architectures: Mapping[str, JsonObject],
    tokenizers: Mapping[str, Tokenizer] | None,
) -> FusionRecipe | None:
    """The recipe of a merge, or None while the root or the tokenizer of an input is not known."""
    if tokenizers is None or any(roots[name] is None for name in needed_inputs(spec, plugins)):
        return None
    return recipe_of(spec, plugins.strategy(spec.uses), roots, architectures, tokenizers)


def architectures(desired: Desired, spec: ReactorSpec) -> dict[str, JsonObject]:
    """The architectures of the models that a merge names."""
    found: dict[str, JsonObject] = {}
    for name in spec.models:
        declared = desired.declarations.get(Key(kind=MODEL, name=name))
        if declared is not None and isinstance(declared.spec, ModelSpec):
            found[name] = declared.spec.architecture
        elif name in desired.registered:
            found[name] = desired.registered[name].architecture
    return found


def needed_inputs(spec: ReactorSpec, plugins: PluginManager) -> tuple[str, ...]:
    """The models without whose weights there is no merge; many strategies ask for no base.

    Where vocabularies are aligned, it gives the rows of tokens that members lack.
    """
    uses_base = plugins.strategy(spec.uses).item.uses_base or spec.tokenizer is not None
    # Not by its name: the base may be a member too.
    return spec.models if uses_base else replace(spec, base=None).models


def weights_root(weights: JsonObject | None) -> bytes | None:
    root = (weights or {}).get("root")
    return bytes.fromhex(root.removeprefix("sha256:")) if root else None


def _weights_json(
    root: bytes | None, metadata: Mapping[str, str], source: str | None
) -> JsonObject:
    """Weights as documents have them; the root is None until they are built."""
    return {
        "root": format_digest(root) if root else None,
        "metadata": dict(metadata),
        "source": source,
    }
