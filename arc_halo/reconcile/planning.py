"""Making a plan: what the manifest wants, what the database has, and what lies between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arc_halo.manifest.documents import (
    MODEL,
    REACTOR,
    TRAINING,
    Desired,
    ModelSpec,
)
from arc_halo.manifest.renames import old_key
from arc_halo.plugins import PluginManager
from arc_halo.reconcile import diff, state
from arc_halo.reconcile.changes import (
    Change,
    Conflict,
    DesiredResource,
    Losses,
    Plan,
)
from arc_halo.reconcile.renaming import mistaken_renames
from arc_halo.reconcile.resources import Planner
from arc_halo.reconcile.selecting import EVERYTHING, Selection, select
from arc_halo.reconcile.sources import Sources
from arc_halo.reconcile.tokenizers import Tokenizers
from arc_halo.store import aliases, losses, migrate, models, reactors, revisions
from arc_halo.store.revisions import RevisionRow
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject, Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a plan is made for: the desired state, or a part of it.

    `left_out` are declared resources that the selection leaves alone.
    """

    desired: Desired
    plugins: PluginManager
    prune: bool = False
    selection: Selection = EVERYTHING
    left_out: frozenset[Key] = frozenset()

    def may_go(self, key: Key) -> bool:
        """Whether a resource that is not desired may be deleted."""
        return key not in self.left_out and self.selection.names(key)

    def plan(self, *, notes: Sequence[str] = (), **facts: Any) -> Plan:
        return Plan(
            notes=(*notes, *self.plugins.remarks.values()),
            project=self.desired.project,
            manifest_digest=self.desired.manifest_digest,
            environment=self.desired.env,
            selection=self.selection,
            prune=self.prune,
            declared_count=len(self.desired.declarations) + len(self.left_out),
            **facts,
        )


def select_wanted(
    conn: Connection, desired: Desired, plugins: PluginManager, selection: Selection, *, prune: bool
) -> Wanted:
    """The part of `desired` that is selected. Raises what `select` does."""
    if selection == EVERYTHING:
        return Wanted(desired=desired, plugins=plugins, prune=prune)
    managed = [] if migrate.pending(conn) else state.managed_keys(conn, desired.project)
    chosen = select(desired, selection, managed)
    left_out = [
        each for key, each in desired.declarations.items() if key not in chosen.declarations
    ]
    # What one that is left out used to be is to be renamed yet.
    olds = (old_key(each.key, each.lifecycle) for each in left_out)
    return Wanted(
        desired=chosen,
        plugins=plugins,
        prune=prune,
        selection=selection,
        left_out=frozenset([*(each.key for each in left_out), *(old for old in olds if old)]),
    )


def make_plan(conn: Connection, wanted: Wanted, sources: Sources) -> Plan:
    """The plan that makes the database match what is wanted.

    Reads in one snapshot and writes nothing. A database without our schema counts as empty, one
    with an older schema cannot be compared before it is migrated. Raises `SchemaMismatchError`
    where a table with a name of ours is somebody else's.
    """
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        states = migrate.status(conn)
        if any(each.state in ("edited", "missing") for each in states):
            migrate.check(conn)
        pending = tuple(each.id for each in states if each.state == "pending")
        if not pending:
            return make_migrated_plan(conn, wanted, sources)
        migrate.check_names_are_free(conn, states)
        if len(pending) == len(states):
            return _plan_of_empty(wanted, sources, pending)
        note = "resources are compared once the database is migrated: `arc-halo migrate up`"
        return wanted.plan(base_revision=0, notes=(note,), migrations=pending)


def _plan_of_empty(wanted: Wanted, sources: Sources, pending: tuple[str, ...]) -> Plan:
    desired = wanted.desired
    tokenizers = Tokenizers(desired, sources.tokenizers, {}, None)
    planner = Planner(desired, sources, wanted.plugins, {}, tokenizers, None)
    found = diff.diff(planner.resources(), {}, project=desired.project)
    return wanted.plan(
        base_revision=0,
        changes=found.changes,
        conflicts=(*planner.conflicts, *found.conflicts),
        notes=tuple(planner.notes),
        migrations=pending,
        tokenizers=tokenizers.used,
    )


def make_migrated_plan(conn: Connection, wanted: Wanted, sources: Sources) -> Plan:
    """As `make_plan`, in the caller's transaction, of a database that is migrated in it."""
    desired = wanted.desired
    live = state.read(conn, desired.project, desired.declarations)
    recorded = state.applied_weights(conn, sources.absent)
    absent = [key for key in desired.declarations if key not in sources.tokenizers]
    known = state.applied_tokenizers(conn, [key for key in absent if key.kind == MODEL])
    tokenizers = Tokenizers(desired, sources.tokenizers, known, conn)
    planner = Planner(desired, sources, wanted.plugins, recorded, tokenizers, conn)
    found = compare(conn, wanted, live, planner.resources())
    undone, notes = None, list[str]()
    if found.changes:
        undone = revisions.undone_by(conn, desired.project, desired.manifest_digest)
        last = revisions.find(conn, desired.project, live.head_revision)
        notes += [] if undone is None else [_undone_text(undone)]
        notes += [] if last is None else _other_environment(last, desired.env)
    return wanted.plan(
        base_revision=live.head_revision,
        changes=found.changes,
        conflicts=(
            *planner.conflicts,
            *found.conflicts,
            *_taken_aliases(conn, desired),
            *mistaken_renames(found.changes, live.resources),
        ),
        orphans=found.orphans,
        notes=(*planner.notes, *notes, *_unfit(conn, wanted.plugins, found.changes)),
        unchanged_count=found.unchanged,
        tokenizers=tokenizers.used,
        managed_count=live.managed_count(desired.project),
        undone_by=undone.revision if undone else None,
    )


def _undone_text(rollback: RevisionRow) -> str:
    return (
        f"this manifest was rolled back, to revision {rollback.rolled_back_to}, by "
        f"{rollback.actor}: to apply it goes forward again"
    )


def _other_environment(last: RevisionRow, env: str | None) -> list[str]:
    """Of a database in which several overlays would undo one another."""
    if last.environment == env:
        return []
    then, now = (
        f"environment {each}" if each else "no environment" for each in (last.environment, env)
    )
    return [f"revision {last.revision} was of {then}, this is of {now}: one database is for one"]


def compare(
    conn: Connection,
    wanted: Wanted,
    live: state.LiveState,
    resources: Mapping[Key, DesiredResource],
) -> diff.Difference:
    """What separates `resources` from the database, and what speaks against changing that."""
    differing = [
        key
        for key, resource in resources.items()
        if diff.needs_details(resource, live.resources.get(key))
    ]
    others = [key for key in live.resources if key not in resources and key not in wanted.left_out]
    detailed = state.with_details(conn, live.resources, [*differing, *others])
    found = diff.diff(
        resources,
        detailed,
        project=wanted.desired.project,
        prune=wanted.prune,
        may_go=wanted.may_go,
    )
    return replace(
        found,
        changes=with_losses(conn, found.changes),
        conflicts=(*found.conflicts, *_still_used(conn, found.changes)),
    )


def with_losses(conn: Connection, changes: Sequence[Change]) -> tuple[Change, ...]:
    """`changes`, each deletion with what it takes along."""
    gone = {
        kind: [c.key.name for c in changes if c.action == "delete" and c.key.kind == kind]
        for kind in (MODEL, REACTOR)
    }
    if not any(gone.values()):
        return tuple(changes)
    found = {
        **{Key(kind=MODEL, name=n): row for n, row in losses.of_models(conn, gone[MODEL]).items()},
        **{
            Key(kind=REACTOR, name=n): row
            for n, row in losses.of_reactors(conn, gone[REACTOR]).items()
        },
    }
    return tuple(
        replace(change, losses=_losses(found[change.key])) if change.key in found else change
        for change in changes
    )


def _losses(row: Mapping[str, int]) -> Losses:
    rows = {name: count for name, count in row.items() if name != "size_bytes" and count}
    return Losses(size_bytes=row.get("size_bytes", 0), rows=rows)


def _still_used(conn: Connection, changes: Sequence[Change]) -> list[Conflict]:
    """Reactors and trainings that stay, and use a model that would go."""
    names = [c.key.name for c in changes if c.action == "delete" and c.key.kind == MODEL]
    if not names:
        return []
    by_address = {str(change.old_key or change.key): change for change in changes}
    return [
        Conflict(
            key=Key(kind=MODEL, name=model),
            code="AH053",
            message=f"model/{model} is used by {address}",
            hint=f"delete or change that {address.partition('/')[0]} first",
        )
        for address, model in models.dependants(conn, names)
        if _uses(by_address.get(address), model)
    ]


def _uses(change: Change | None, model: str) -> bool:
    """Whether what uses `model` now still does after its change, if it has one."""
    if change is None or change.action == "forget":
        return True
    if change.after is None:
        return False
    if change.key.kind == TRAINING:
        return bool(change.after["model"] == model)
    members = [member["model"] for member in change.after["members"]]
    return model in (*members, change.after["base"])


def _unfit(conn: Connection, plugins: PluginManager, changes: Sequence[Change]) -> list[str]:
    """Notes on reactors that have learnt from examples what their next strategy cannot use."""
    names = {
        (change.old_key or change.key).name: change.key.name
        for change in changes
        if change.key.kind == REACTOR and change.before is not None and change.after is not None
        if _fitted_for(change.before) != _fitted_for(change.after)
        if plugins.strategy(change.after["uses"]).item.fit_outputs is not None
    }
    return [
        f"reactor/{names[name]} changes its strategy or its members, and was fitted before: "
        f"`arc-halo reactor fit {names[name]} --data FILE` again"
        for name in (reactors.fitted_names(conn, list(names)) if names else ())
    ]


def _fitted_for(spec: JsonObject) -> tuple[str, set[str]]:
    voters = {each["model"] for each in spec["members"] if each["role"] != "validator"}
    return spec["uses"], voters


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
        for alias, model, owner in aliases.foreign(conn, desired.project, wanted)
        if model not in declared
    ]
