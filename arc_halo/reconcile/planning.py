"""Making a plan: what the manifest wants, what the database has, and what lies between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from arc_halo.errors import ManifestError, Problem
from arc_halo.fusion.recipes import FusionInput, FusionRecipe
from arc_halo.manifest.documents import (
    MODEL,
    REACTOR,
    Declaration,
    Desired,
    ModelSpec,
    ReactorSpec,
    WeightsSource,
    spec_digest,
)
from arc_halo.plugins import PluginManager
from arc_halo.reconcile import diff, state
from arc_halo.reconcile.changes import (
    Build,
    Change,
    Conflict,
    DesiredResource,
    FuseBuild,
    ImportBuild,
    Plan,
)
from arc_halo.store import builds, migrate, models
from arc_halo.store.rows import Connection
from arc_halo.tensors.digests import format_digest
from arc_halo.transfer.sources import Advance, DigestCache, SourceFacts, source_facts
from arc_halo.types import JsonObject, Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The weight files that are there, by model, and the models whose files are absent."""

    facts: Mapping[Key, SourceFacts] = field(default_factory=dict)
    absent: tuple[Key, ...] = ()


def read_sources(
    desired: Desired, plugins: PluginManager, cache: DigestCache, *, advance: Advance | None = None
) -> Sources:
    """Digest every source of weights the manifest names; unchanged files are not read again.

    Raises `ManifestError` for a file that is not the one its `digest` promises.
    """
    facts: dict[Key, SourceFacts] = {}
    absent: list[Key] = []
    problems: list[Problem] = []
    for key, declaration in desired.declarations.items():
        source = _source(declaration)
        if source is None:
            continue
        if not source.path.exists():
            absent.append(key)
            continue
        found = source_facts(
            source.path,
            plugins.format(source.format),
            cache,
            roots=source.roots,
            advance=advance,
        )
        facts[key] = found
        if source.digest not in (None, found.root):
            problems.append(
                desired.problem(
                    declaration,
                    ("weights", "digest"),
                    "AH063",
                    f"{source.label} has the digest {format_digest(found.root)}, "
                    f"not the one {key} declares",
                    "put the right file in its place, or change `weights.digest`",
                )
            )
    cache.save()
    if problems:
        raise ManifestError(problems)
    return Sources(facts=facts, absent=tuple(absent))


def make_plan(
    conn: Connection,
    desired: Desired,
    sources: Sources,
    plugins: PluginManager,
    *,
    prune: bool = False,
) -> Plan:
    """The plan that makes the database match `desired`.

    Reads in one snapshot and writes nothing. A database without our schema counts as empty, one
    with an older schema cannot be compared before it is migrated.
    """
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        states = migrate.status(conn)
        if any(each.state in ("edited", "missing") for each in states):
            migrate.check(conn)
        pending = tuple(each.id for each in states if each.state == "pending")
        if not pending:
            return _plan_of_live(conn, desired, sources, plugins, prune)
        if len(pending) == len(states):
            return _plan_of_empty(desired, sources, plugins, pending)
        return _plan_of_older(desired, pending)


def _plan_of_empty(
    desired: Desired, sources: Sources, plugins: PluginManager, pending: tuple[str, ...]
) -> Plan:
    planner = _Planner(desired, sources, plugins, {}, None)
    found = diff.diff(planner.resources(), {}, project=desired.project)
    return Plan(
        project=desired.project,
        base_revision=0,
        manifest_digest=desired.manifest_digest,
        changes=found.changes,
        conflicts=(*planner.conflicts, *found.conflicts),
        notes=tuple(planner.notes),
        migrations=pending,
    )


def _plan_of_older(desired: Desired, pending: tuple[str, ...]) -> Plan:
    note = "resources are compared once the database is migrated: `arc-halo migrate up`"
    return Plan(
        project=desired.project,
        base_revision=0,
        manifest_digest=desired.manifest_digest,
        notes=(note,),
        migrations=pending,
    )


def _plan_of_live(
    conn: Connection, desired: Desired, sources: Sources, plugins: PluginManager, prune: bool
) -> Plan:
    live = state.read(conn, desired.project, desired.declarations)
    recorded = state.applied_weights(conn, sources.absent)
    planner = _Planner(desired, sources, plugins, recorded, conn)
    resources = planner.resources()
    differing = [
        key
        for key, resource in resources.items()
        if diff.needs_details(resource, live.resources.get(key))
    ]
    renamed = [key for key in live.resources if key not in resources]
    detailed = state.with_details(conn, live.resources, [*differing, *renamed])
    found = diff.diff(resources, detailed, project=desired.project, prune=prune)
    return Plan(
        project=desired.project,
        base_revision=live.head_revision,
        manifest_digest=desired.manifest_digest,
        changes=found.changes,
        conflicts=(
            *planner.conflicts,
            *found.conflicts,
            *_still_used(conn, found.changes),
            *_taken_aliases(conn, desired),
        ),
        orphans=found.orphans,
        notes=tuple(planner.notes),
        unchanged_count=found.unchanged,
    )


class _Planner:
    """Turns declarations into resources whose weights are known as far as they can be."""

    def __init__(
        self,
        desired: Desired,
        sources: Sources,
        plugins: PluginManager,
        recorded: Mapping[Key, JsonObject],
        conn: Connection | None,
    ) -> None:
        self.notes: list[str] = []
        self.conflicts: list[Conflict] = []
        self._desired = desired
        self._sources = sources
        self._plugins = plugins
        self._recorded = recorded
        self._conn = conn
        self._weights: dict[str, JsonObject | None] = {
            name: _weights_json(model.root, None) if model.root else None
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
            spec["weights"] = self._weights[declaration.key.name]
            build = build or self._import(declaration)
        return DesiredResource(
            key=declaration.key,
            spec=spec,
            digest=spec_digest(spec),
            lifecycle=declaration.lifecycle,
            source_file=declaration.where.file,
            build=build,
        )

    def _import(self, declaration: Declaration) -> Build | None:
        source = _source(declaration)
        facts = self._sources.facts.get(declaration.key)
        if source is None or facts is None:
            return None
        return ImportBuild(
            source=source,
            root=facts.root,
            size_bytes=facts.size_bytes,
            tensor_count=facts.tensor_count,
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
                if all(name in self._weights for name in inputs(spec))
            }
            if not ready:
                break
            self._merge_level(ready, found)
            waiting = {key: spec for key, spec in waiting.items() if key not in ready}
        return found

    def _merge_level(self, level: Mapping[Key, ReactorSpec], found: dict[Key, Build]) -> None:
        recipes = {
            key: recipe_of(spec, self._plugins, self._roots(spec)) for key, spec in level.items()
        }
        keys = [recipe.key for recipe in recipes.values() if recipe is not None]
        roots = builds.roots_by_key(self._conn, keys) if self._conn and keys else {}
        for key, spec in level.items():
            recipe = recipes[key]
            root = roots.get(recipe.key) if recipe else None
            metadata = self._metadata(spec)
            self._weights[key.name] = (
                _weights_json(root, metadata) if root else {"root": None, "metadata": metadata}
            )
            declaration = self._desired.declarations[key]
            assert isinstance(declaration.spec, ModelSpec)
            reactor = (declaration.spec.produced_by or "").removeprefix("reactor/")
            found[key] = FuseBuild(
                reactor=reactor, spec=spec, recipe=recipe, roots=self._roots(spec)
            )
            self._check_inputs(key, spec)

    def _check_inputs(self, key: Key, spec: ReactorSpec) -> None:
        for name in inputs(spec):
            if self._weights[name] is None:
                self.conflicts.append(
                    Conflict(
                        key=key,
                        code="AH064",
                        message=f"{key} is to be fused from model/{name}, which has no weights",
                        hint=f"declare `weights:` for {name}",
                    )
                )

    def _roots(self, spec: ReactorSpec) -> dict[str, bytes | None]:
        return {name: weights_root(self._weights[name]) for name in inputs(spec)}

    def _metadata(self, spec: ReactorSpec) -> JsonObject:
        """A merged file says of itself what its base's, or first member's, says."""
        weights = self._weights[spec.base or spec.members[0].model] or {}
        return dict(weights.get("metadata") or {})

    def _imported(self, key: Key, declaration: Declaration) -> JsonObject | None:
        facts = self._sources.facts.get(key)
        if facts is not None:
            return _weights_json(facts.root, facts.metadata)
        if key not in self._recorded:
            return None
        source = _source(declaration)
        label = source.label if source else ""
        self.notes.append(f"{key}: {label} is not here; its weights are kept as recorded")
        return self._recorded[key]

    def _check_absent(self) -> None:
        problems = []
        for key in self._sources.absent:
            if key in self._recorded:
                continue
            declaration = self._desired.declarations[key]
            source = _source(declaration)
            assert source is not None
            problems.append(
                self._desired.problem(
                    declaration,
                    ("weights",),
                    "AH025",
                    f"the weights of {key}, {source.label}, are not there",
                    "put the file in its place; it has never been imported",
                )
            )
        if problems:
            raise ManifestError(problems)


def recipe_of(
    spec: ReactorSpec, plugins: PluginManager, roots: Mapping[str, bytes | None]
) -> FusionRecipe | None:
    """The recipe of a merge, or None while the root of an input is not known."""
    if any(roots[name] is None for name in inputs(spec)):
        return None
    provided = plugins.strategy(spec.uses)
    members = tuple(
        FusionInput(
            model=member.model,
            root=roots[member.model] or b"",
            role=member.role,
            weight=member.weight,
        )
        for member in spec.members
    )
    base = None
    if spec.base is not None and provided.item.needs_base:
        base = FusionInput(model=spec.base, root=roots[spec.base] or b"")
    return FusionRecipe(
        strategy=provided.item,
        strategy_version=provided.version,
        params=spec.params,
        members=members,
        base=base,
    )


def inputs(spec: ReactorSpec) -> tuple[str, ...]:
    """The models whose weights go into a merge."""
    return (*(member.model for member in spec.members), *([spec.base] if spec.base else []))


def weights_root(weights: JsonObject | None) -> bytes | None:
    root = (weights or {}).get("root")
    return bytes.fromhex(root.removeprefix("sha256:")) if root else None


def _weights_json(root: bytes, metadata: Mapping[str, str] | None) -> JsonObject:
    return {"root": format_digest(root), "metadata": dict(metadata or {})}


def _source(declaration: Declaration) -> WeightsSource | None:
    spec = declaration.spec
    return spec.weights if isinstance(spec, ModelSpec) else None


def _still_used(conn: Connection, changes: Sequence[Change]) -> list[Conflict]:
    """Reactors that stay, and use a model that would go."""
    names = [c.key.name for c in changes if c.action == "delete" and c.key.kind == MODEL]
    if not names:
        return []
    by_key = {change.key: change for change in changes}
    return [
        Conflict(
            key=Key(kind=MODEL, name=model),
            code="AH053",
            message=f"model/{model} is used by reactor/{reactor}",
            hint="delete or change that reactor first",
        )
        for reactor, model in models.dependants(conn, names)
        if _uses(by_key.get(Key(kind=REACTOR, name=reactor)), model)
    ]


def _uses(change: Change | None, model: str) -> bool:
    """Whether a reactor that uses `model` now still does after its change, if it has one."""
    if change is None or change.action == "forget":
        return True
    if change.after is None:
        return False
    members = [member["model"] for member in change.after["members"]]
    return model in (*members, change.after["base"])


def _taken_aliases(conn: Connection, desired: Desired) -> list[Conflict]:
    """Aliases that would be taken from a model of another project, or of none."""
    wanted = [
        (key.name.partition("@")[0], alias)
        for key, declaration in desired.declarations.items()
        if isinstance(declaration.spec, ModelSpec)
        for alias in declaration.spec.aliases
    ]
    if not wanted:
        return []
    declared = {key.name for key in desired.declarations if key.kind == MODEL}
    return [
        Conflict(
            key=Key(kind=MODEL, name=model),
            code="AH053",
            message=f"the alias {alias} stands for model/{model}, "
            + (f"which belongs to the project {owner!r}" if owner else "which nobody manages"),
            hint="choose another alias",
        )
        for alias, model, owner in models.foreign_aliases(conn, desired.project, wanted)
        if model not in declared
    ]
