"""The one transaction in which everything visible changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

from arc_halo.errors import StalePlanError
from arc_halo.fusion.recipes import FusionRecipe
from arc_halo.reconcile import kinds, state
from arc_halo.reconcile.changes import Change, FuseBuild, ImportBuild, Plan
from arc_halo.reconcile.renaming import rename
from arc_halo.reconcile.who import origin
from arc_halo.store import projects, reactors, revisions, tokenizers
from arc_halo.store.locks import limit_waiting, try_xact_lock
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject, Key

LOCK_SECONDS = 30.0
"""How long an apply waits for another, and for rows that others hold."""


class Commit:
    """Writes the changes of a plan; call `run` inside a transaction."""

    def __init__(
        self,
        conn: Connection,
        plan: Plan,
        changes: Sequence[Change],
        recipes: Mapping[Key, FusionRecipe],
        *,
        lock_seconds: float | None = None,
    ) -> None:
        self._conn = conn
        self._plan = plan
        self._changes = changes
        self._recipes = recipes
        self._lock_seconds = LOCK_SECONDS if lock_seconds is None else lock_seconds
        self._ids: dict[Key, UUID] = {}

    def run(self, summary: JsonObject, project_directory: Path) -> int:
        """Returns the number of the new revision."""
        revision = self._lock()
        rename(self._conn, self._changes)
        tokenizers.keep(self._conn, _new_tokenizers(self._plan))
        self._write(kinds.Revision(project=self._plan.project, number=revision))
        self._record_merges()
        self._delete()
        self._record_managed(revision)
        self._record_revision(revision, summary, project_directory)
        return revision

    def _lock(self) -> int:
        project = self._plan.project
        try_xact_lock(self._conn, f"arc-halo/{project}", self._lock_seconds)
        limit_waiting(self._conn, self._lock_seconds)
        projects.ensure(self._conn, project)
        head = projects.head(self._conn, project, lock=True)
        if head.head_revision != self._plan.base_revision:
            raise StalePlanError(
                f"the plan starts from revision {self._plan.base_revision} of {project}, "
                f"which is at revision {head.head_revision} now",
                hint="plan or apply again",
            )
        new = [change.key for change in self._changes if change.action == "create"]
        if there := state.live_digests(self._conn, new):
            raise StalePlanError(
                f"{next(iter(there))} was created after the plan was made",
                hint="plan or apply again",
            )
        return head.head_revision + 1

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
                "ignored": list(change.lifecycle.ignore),
                "tags": (change.after or {}).get("tags", {}),
                "source_file": change.source_file,
            }
            for change in kept
        ]
        if projects.upsert_managed(self._conn, self._plan.project, revision, items) != len(items):
            raise StalePlanError(
                "another project took one of these names after the plan was made",
                hint="plan or apply again",
            )

    def _record_revision(self, revision: int, summary: JsonObject, project_directory: Path) -> None:
        plan = self._plan
        revisions.record(
            self._conn,
            revisions.NewRevision(
                project=plan.project,
                revision=revision,
                **asdict(origin(project_directory)),
                manifest_digest=plan.manifest_digest,
                plan_digest=plan.digest,
                environment=plan.environment,
                is_partial=plan.is_partial,
                rolled_back_to=plan.rolled_back_to,
            ),
            summary=summary,
            changes=[_recorded(change, n) for n, change in enumerate(self._changes)],
            head_digest=plan.manifest_digest if plan.is_whole else None,
        )


def _recorded(change: Change, ordinal: int) -> JsonObject:
    return {
        "ordinal": ordinal,
        "action": change.action,
        "kind": change.key.kind,
        "name": change.key.name,
        "old_name": change.old_key.name if change.old_key else None,
        "before": change.before,
        "after": change.after,
        "protected": change.lifecycle.protected,
        "deletion": change.lifecycle.deletion,
    }


def _new_tokenizers(plan: Plan) -> dict[bytes, tokenizers.NewTokenizer]:
    return {
        digest: tokenizers.NewTokenizer(
            digest=digest, document=each.document, token_count=len(each.vocabulary)
        )
        for digest, each in plan.tokenizers.items()
    }


def _weights_source(change: Change) -> JsonObject | None:
    if isinstance(change.build, ImportBuild):
        source = change.build.source
        return {"source": source.label, "format": source.format}
    # Weights that are there already, as a rollback has them, come from where they came from.
    label = ((change.after or {}).get("weights") or {}).get("source")
    return {"source": label} if change.build is None and label else None
