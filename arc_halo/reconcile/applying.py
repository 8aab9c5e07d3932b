"""Carrying out a plan: weights are built first, then everything changes in one transaction."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from arc_halo.errors import RefusedError
from arc_halo.fusion.driving import LOCAL, Workers
from arc_halo.manifest.documents import spec_digest
from arc_halo.plugins import PluginManager
from arc_halo.reconcile.building import Builder
from arc_halo.reconcile.changes import Change, Plan
from arc_halo.reconcile.committing import Commit
from arc_halo.reconcile.progress import Progress, Silent
from arc_halo.tensors.digests import format_digest
from arc_halo.types import JsonObject, Key
from arc_halo.weights.building import Built
from arc_halo.weights.store import WeightStore


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
    workers: Workers = LOCAL,
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
    builder = Builder(store, plan, plugins, workers, progress or Silent())
    built = builder.run()
    changes = [_with_weights(change, built) for change in plan.changes]
    recipes = {c.key: recipe for c in changes if (recipe := builder.recipe(c)) is not None}
    summary = _summary(plan, built, time.monotonic() - started)
    with store.pool.connection() as conn, conn.transaction():
        revision = Commit(conn, plan, changes, recipes).run(summary, project_directory)
    return Report(
        plan=replace(plan, changes=tuple(changes)),
        revision=revision,
        seconds=time.monotonic() - started,
        builds=built,
    )


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
