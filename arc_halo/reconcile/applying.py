"""Carrying out a plan: weights are built first, then everything changes in one transaction."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from arc_halo._version import __version__
from arc_halo.errors import RefusedError, StalePlanError, WeightsError
from arc_halo.fusion.recipes import FusionRecipe
from arc_halo.fusion.running import fuse, output_bytes
from arc_halo.manifest.documents import spec_digest
from arc_halo.plugins import PluginManager
from arc_halo.reconcile import kinds, state
from arc_halo.reconcile.changes import Build, Change, FuseBuild, ImportBuild, Plan
from arc_halo.reconcile.git import git_state
from arc_halo.reconcile.planning import inputs, recipe_of
from arc_halo.reconcile.progress import Progress, Silent
from arc_halo.store import projects, reactors
from arc_halo.store.locks import try_xact_lock
from arc_halo.store.rows import Connection
from arc_halo.tensors.digests import format_digest
from arc_halo.transfer.importing import import_weights
from arc_halo.types import JsonObject, Key
from arc_halo.weights.building import Built
from arc_halo.weights.store import WeightStore

LOCK_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an apply did. Byte counts are of raw weights read, new to the store, and stored."""

    plan: Plan
    revision: int
    seconds: float
    builds: Mapping[Key, Built] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(built.size_bytes for built in self.builds.values())

    @property
    def new_bytes(self) -> int:
        return sum(built.new_bytes for built in self.builds.values())

    @property
    def stored_bytes(self) -> int:
        return sum(built.stored_bytes for built in self.builds.values())


def check_applicable(plan: Plan, *, max_deletes: int | None = None) -> None:
    """Raise `RefusedError` when the plan has conflicts or deletes more than is allowed."""
    if plan.conflicts:
        first = plan.conflicts[0]
        more = f" (and {len(plan.conflicts) - 1} more)" if len(plan.conflicts) > 1 else ""
        raise RefusedError(first.message + more, hint=first.hint, code=first.code)
    if max_deletes is not None and len(plan.deletions) > max_deletes:
        raise RefusedError(
            f"the plan deletes {len(plan.deletions)} resources, at most {max_deletes} are allowed",
            hint="raise `settings.max_deletes`, if that is what you want",
            code="AH054",
        )


def apply_plan(
    store: WeightStore,
    plan: Plan,
    plugins: PluginManager,
    *,
    project_directory: Path,
    progress: Progress | None = None,
) -> Report:
    """Make the database as `plan` says, all of it or nothing.

    Weights are built before, tensor by tensor, and are found again when this is interrupted.
    Raises `StalePlanError` when another apply came in between, `LockNotHadError` when one is
    running.
    """
    check_applicable(plan)
    started = time.monotonic()
    if not plan.changes:
        return Report(plan=plan, revision=plan.base_revision, seconds=0.0)
    builder = _Builder(store, plan, plugins, progress or Silent())
    built = builder.run()
    changes = [_with_weights(change, built) for change in plan.changes]
    recipes = {c.key: recipe for c in changes if (recipe := builder.recipe(c)) is not None}
    summary = _summary(plan, built, time.monotonic() - started)
    with store.pool.connection() as conn, conn.transaction():
        revision = _Commit(conn, plan, changes, recipes).run(summary, project_directory)
    return Report(
        plan=replace(plan, changes=tuple(changes)),
        revision=revision,
        seconds=time.monotonic() - started,
        builds=built,
    )


class _Builder:
    """Imports and fuses what the changes of a plan need, in their order."""

    def __init__(
        self, store: WeightStore, plan: Plan, plugins: PluginManager, progress: Progress
    ) -> None:
        self._store = store
        self._plan = plan
        self._plugins = plugins
        self._progress = progress
        self._roots: dict[str, bytes] = {}

    def run(self) -> dict[Key, Built]:
        built: dict[Key, Built] = {}
        for change in self._plan.changes:
            if change.build is not None:
                built[change.key] = self._build(change, change.build)
                self._roots[change.key.name] = built[change.key].root
        return built

    def _build(self, change: Change, build: Build) -> Built:
        if isinstance(build, ImportBuild):
            return self._import(build)
        return self._fuse(change, build)

    def _import(self, build: ImportBuild) -> Built:
        source = build.source
        with self._progress.task(f"import {source.label}", build.size_bytes) as advance:
            return import_weights(
                self._store,
                source.path,
                self._plugins.format(source.format),
                build.root,
                label=source.label,
                project=self._plan.project,
                codec=source.codec,
                advance=advance,
            )

    def _fuse(self, change: Change, build: FuseBuild) -> Built:
        recipe = self._recipe(change, build)
        size_bytes = output_bytes(self._store, recipe)
        with self._progress.task(f"fuse {change.key.name}", size_bytes) as advance:
            return fuse(self._store, recipe, project=self._plan.project, advance=advance)

    def _recipe(self, change: Change, build: FuseBuild) -> FusionRecipe:
        roots = {**build.roots, **{n: r for n, r in self._roots.items() if n in build.roots}}
        recipe = recipe_of(build.spec, self._plugins, roots)
        if recipe is None:
            missing = ", ".join(name for name in inputs(build.spec) if roots[name] is None)
            raise WeightsError(
                f"{change.key} cannot be fused: {missing} has no weights", code="AH064"
            )
        return recipe

    def recipe(self, change: Change) -> FusionRecipe | None:
        """The recipe that made the change's weights, now that all roots are known."""
        return self._recipe(change, change.build) if isinstance(change.build, FuseBuild) else None


class _Commit:
    """The one transaction in which everything visible changes."""

    def __init__(
        self,
        conn: Connection,
        plan: Plan,
        changes: Sequence[Change],
        recipes: Mapping[Key, FusionRecipe],
    ) -> None:
        self._conn = conn
        self._plan = plan
        self._changes = changes
        self._recipes = recipes
        self._ids: dict[Key, UUID] = {}

    def run(self, summary: JsonObject, project_directory: Path) -> int:
        """Returns the number of the new revision."""
        revision = self._lock()
        self._rename()
        self._write(kinds.Revision(project=self._plan.project, number=revision))
        self._record_merges()
        self._delete()
        self._record_managed(revision)
        self._record_revision(revision, summary, project_directory)
        return revision

    def _lock(self) -> int:
        project = self._plan.project
        try_xact_lock(self._conn, f"arc-halo/{project}", LOCK_SECONDS)
        projects.ensure(self._conn, project)
        head = projects.head(self._conn, project, lock=True)
        if head.head_revision != self._plan.base_revision:
            raise StalePlanError(
                f"the plan starts from revision {self._plan.base_revision} of {project}, "
                f"which is at revision {head.head_revision} now",
                hint="plan again",
            )
        new = [change.key for change in self._changes if change.action == "create"]
        if there := state.live_digests(self._conn, new):
            raise StalePlanError(
                f"{next(iter(there))} was created after the plan was made", hint="plan again"
            )
        return head.head_revision + 1

    def _rename(self) -> None:
        for change in self._changes:
            if change.old_key is not None:
                old, new = change.old_key.name, change.key.name
                kinds.BY_NAME[change.key.kind].rename(self._conn, old, new)
                projects.rename_managed(self._conn, change.key.kind, old, new)

    def _write(self, revision: kinds.Revision) -> None:
        for kind in kinds.ORDERED:
            items = [
                kinds.Written(
                    name=change.key.name,
                    spec=change.after,
                    weights_source=_weights_source(change),
                )
                for change in self._changes
                if change.key.kind == kind.name and change.after is not None
            ]
            if items:
                ids = kind.write(self._conn, items, revision)
                self._ids.update({Key(kind=kind.name, name=n): id_ for n, id_ in ids.items()})

    def _record_merges(self) -> None:
        for change in self._changes:
            recipe = self._recipes.get(change.key)
            if recipe is not None and isinstance(change.build, FuseBuild):
                reactors.record_merge(
                    self._conn,
                    reactor=change.build.reactor,
                    strategy=recipe.strategy.name,
                    strategy_version=recipe.strategy_version,
                    params=recipe.params,
                    recipe_key=recipe.key,
                    model=change.key.name,
                    inputs=recipe.lineage(),
                )

    def _delete(self) -> None:
        gone = [c for c in self._changes if c.action in ("delete", "forget")]
        for kind in reversed(kinds.ORDERED):
            names = [c.key.name for c in gone if c.key.kind == kind.name and c.action == "delete"]
            if names:
                kind.delete(self._conn, names)
        if gone:
            projects.delete_managed(self._conn, self._plan.project, [c.key for c in gone])

    def _record_managed(self, revision: int) -> None:
        kept = [change for change in self._changes if change.after is not None]
        digests = state.live_digests(self._conn, [change.key for change in kept])
        items = [
            {
                "kind": change.key.kind,
                "name": change.key.name,
                "resource_id": str(self._ids[change.key]),
                "spec": change.after,
                "spec_digest": (change.digest or b"").hex(),
                "live_digest": digests[change.key],
                "protected": change.lifecycle.protected,
                "deletion": change.lifecycle.deletion,
                "tags": (change.after or {}).get("tags", {}),
                "source_file": change.source_file,
            }
            for change in kept
        ]
        if projects.upsert_managed(self._conn, self._plan.project, revision, items) != len(items):
            raise StalePlanError(
                "another project took one of these names after the plan was made",
                hint="plan again",
            )

    def _record_revision(self, revision: int, summary: JsonObject, project_directory: Path) -> None:
        git = git_state(project_directory)
        projects.record_revision(
            self._conn,
            project=self._plan.project,
            revision=revision,
            actor=_actor(),
            host=socket.gethostname(),
            tool_version=__version__,
            git_commit=git.commit if git else None,
            git_dirty=git.is_dirty if git else None,
            manifest_digest=self._plan.manifest_digest,
            plan_digest=self._plan.digest,
            summary=summary,
            changes=[
                {
                    "ordinal": ordinal,
                    "action": change.action,
                    "kind": change.key.kind,
                    "name": change.key.name,
                    "before": change.before,
                    "after": change.after,
                }
                for ordinal, change in enumerate(self._changes)
            ],
        )


def _with_weights(change: Change, built: Mapping[Key, Built]) -> Change:
    """The change with the root that its build came to."""
    if change.key not in built or change.after is None:
        return change
    root = format_digest(built[change.key].root)
    weights = {**(change.after["weights"] or {"metadata": {}}), "root": root}
    if weights == change.after["weights"]:
        return change
    after = {**change.after, "weights": weights}
    fields = tuple(replace(f, after=root) if f.path == "weights.root" else f for f in change.fields)
    return replace(change, after=after, digest=spec_digest(after), fields=fields)


def _weights_source(change: Change) -> JsonObject | None:
    if not isinstance(change.build, ImportBuild):
        return None
    source = change.build.source
    return {"source": source.label, "format": source.format}


def _summary(plan: Plan, built: Mapping[Key, Built], seconds: float) -> JsonObject:
    return {
        "changes": dict(plan.counts),
        "weights_bytes": sum(item.size_bytes for item in built.values()),
        "new_bytes": sum(item.new_bytes for item in built.values()),
        "stored_bytes": sum(item.stored_bytes for item in built.values()),
        "seconds": round(seconds, 3),
    }


def _actor() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
