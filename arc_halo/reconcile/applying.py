"""Carrying out a plan: weights are built first, then everything changes in one transaction."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from arc_halo.errors import ConnectionFailedError, LockNotHadError
from arc_halo.fusion.driving import LOCAL, Workers
from arc_halo.fusion.recipes import FusionRecipe
from arc_halo.manifest.documents import spec_digest
from arc_halo.plugins import PluginManager
from arc_halo.reconcile.building import Builder
from arc_halo.reconcile.changes import Change, Plan
from arc_halo.reconcile.committing import LOCK_SECONDS, Commit
from arc_halo.reconcile.progress import Progress, Silent
from arc_halo.store import revisions
from arc_halo.store.locks import try_xact_lock
from arc_halo.store.revisions import check_constraints
from arc_halo.store.rows import Connection, Pool
from arc_halo.tensors.digests import format_digest
from arc_halo.types import JsonObject, Key
from arc_halo.weights.building import Built
from arc_halo.weights.store import WeightStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an apply did, or would have done. Byte counts are of raw weights read, new to the
    store, and stored. `plan_digest` names the plan as it was made.
    """

    plan: Plan
    revision: int
    seconds: float
    plan_digest: bytes
    is_dry_run: bool = False
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


def apply_plan(
    store: WeightStore,
    plan: Plan,
    plugins: PluginManager,
    *,
    project_directory: Path,
    workers: Workers = LOCAL,
    progress: Progress | None = None,
) -> Report:
    """Make the database as `plan` says, all of it or nothing.

    Weights are built before, tensor by tensor, and are found again when this is interrupted.
    Raises `StalePlanError` when another apply came in between, `LockNotHadError` when one is
    running, `ConnectionFailedError` when the server went away and nothing was changed.
    """
    started = time.monotonic()
    if not plan.changes:
        return Report(plan=plan, revision=plan.base_revision, seconds=0.0, plan_digest=plan.digest)
    builder = Builder(store, plan, plugins, workers, progress or Silent())
    built = builder.run()
    changes = [_with_weights(change, built) for change in plan.changes]
    recipes = {c.key: recipe for c in changes if (recipe := builder.recipe(c)) is not None}
    summary = _summary(plan, built, time.monotonic() - started)
    revision = _commit(store.pool, plan, changes, recipes, summary, project_directory)
    return Report(
        plan=replace(plan, changes=tuple(changes)),
        revision=revision,
        seconds=time.monotonic() - started,
        builds=built,
        plan_digest=plan.digest,
    )


def try_plan(
    conn: Connection, plan: Plan, *, project_directory: Path, lock_seconds: float | None = None
) -> Report:
    """Do all that `apply_plan` does in its transaction, constraints included, and undo it.

    Weights are not built: a model that would get new ones is tried without them. `lock_seconds`
    bounds the wait for others where the caller's transaction keeps others waiting.
    """
    started = time.monotonic()
    changes = [_without_unbuilt(change) for change in plan.changes]
    revision = plan.base_revision
    if changes:
        with conn.transaction(force_rollback=True):
            summary = _summary(plan, {}, 0.0)
            commit = Commit(conn, plan, changes, {}, lock_seconds=lock_seconds)
            revision = commit.run(summary, project_directory)
            check_constraints(conn)
    return Report(
        plan=plan,
        revision=revision,
        seconds=time.monotonic() - started,
        plan_digest=plan.digest,
        is_dry_run=True,
    )


def _commit(
    pool: Pool,
    plan: Plan,
    changes: Sequence[Change],
    recipes: Mapping[Key, FusionRecipe],
    summary: JsonObject,
    project_directory: Path,
) -> int:
    is_connected = False
    try:
        with pool.connection() as conn:
            is_connected = True
            with conn.transaction():
                return Commit(conn, plan, changes, recipes).run(summary, project_directory)
    except ConnectionFailedError as lost:
        if not is_connected:
            raise
        # It may have gone away after it committed: what the database says is the truth.
        return _revision_after_all(pool, plan, lost)


def _revision_after_all(pool: Pool, plan: Plan, lost: ConnectionFailedError) -> int:
    try:
        with pool.connection() as conn, conn.transaction():
            # Until the lost session is through with it, its transaction may yet be committed.
            try_xact_lock(conn, f"arc-halo/{plan.project}", LOCK_SECONDS)
            found = revisions.by_plan(conn, plan.project, plan.digest)
    except (ConnectionFailedError, LockNotHadError):
        raise ConnectionFailedError(
            f"{lost.message}; whether the apply was committed is not known",
            hint="once the server is there: `arc-halo history` tells; applying again is safe",
        ) from lost
    if found is None:
        raise ConnectionFailedError(
            f"{lost.message}; nothing was changed", hint="run the command again"
        ) from lost
    return found.revision


def _without_unbuilt(change: Change) -> Change:
    """The change without weights that are still to be made: its rows could not point to them."""
    if change.build is None or change.after is None:
        return change
    after = {**change.after, "weights": None}
    return replace(change, after=after, digest=spec_digest(after), build=None)


def _with_weights(change: Change, built: Mapping[Key, Built]) -> Change:
    """The change with the root that its build came to."""
    if change.key not in built or change.after is None:
        return change
    root = format_digest(built[change.key].root)
    weights = {**(change.after["weights"] or {"metadata": {}, "source": None}), "root": root}
    if weights == change.after["weights"]:
        return change
    after = {**change.after, "weights": weights}
    fields = tuple(replace(f, after=root) if f.path == "weights.root" else f for f in change.fields)
    return replace(change, after=after, digest=spec_digest(after), fields=fields)


def _summary(plan: Plan, built: Mapping[Key, Built], seconds: float) -> JsonObject:
    return {
        "changes": dict(plan.counts),
        "weights_bytes": sum(item.size_bytes for item in built.values()),
        "new_bytes": sum(item.new_bytes for item in built.values()),
        "stored_bytes": sum(item.stored_bytes for item in built.values()),
        "seconds": round(seconds, 3),
    }
