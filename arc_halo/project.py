"""What is done with a project: planned, applied, compared, gone back to, taken over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from arc_halo.config import EMBEDDED, redact
from arc_halo.errors import InvalidInputError, NotFoundError, WeightsError
from arc_halo.names import did_you_mean
from arc_halo.project_directory import ProjectDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.reconcile.adopting import Adopted
    from arc_halo.reconcile.applying import Report
    from arc_halo.reconcile.changes import Plan
    from arc_halo.reconcile.drift import Drift
    from arc_halo.reconcile.exporting import ExportedManifest
    from arc_halo.reconcile.history import PastRevision
    from arc_halo.reconcile.limits import Limits
    from arc_halo.reconcile.progress import Progress
    from arc_halo.reconcile.saved import SavedPlan
    from arc_halo.reconcile.unchanged import Circumstances, Memory
    from arc_halo.store.revisions import RevisionRow
    from arc_halo.store.rows import Connection
    from arc_halo.transfer.sources import Advance

MIGRATING_LOCK_SECONDS = 2.0
"""How long a dry run waits for others while it holds tables that it has migrated."""


class Project(ProjectDirectory):
    """Everything a command or a script needs of a project; close it, or use it in a `with`."""

    def plan(
        self,
        *,
        prune: bool | None = None,
        targets: Sequence[str] = (),
        excludes: Sequence[str] = (),
        advance: Advance | None = None,
    ) -> Plan:
        """What apply would do, and what policies say of it.

        `targets` and `excludes` are globs over addresses that limit it to a part of the manifest.
        Nothing is written, in the database or anywhere but the cache.
        """
        if not targets and not excludes and (known := self._unchanged(prune)) is not None:
            return known
        from arc_halo.reconcile.planning import make_plan, select_wanted
        from arc_halo.reconcile.policies import with_refusals
        from arc_halo.reconcile.selecting import EVERYTHING, Selection
        from arc_halo.reconcile.sources import read_sources, weight_files
        from arc_halo.store import migrate
        from arc_halo.store.standing import standing

        selection = Selection(targets=tuple(targets), excludes=tuple(excludes))
        began = time.time()
        desired = self.desired()
        wants_prune = desired.settings.prune if prune is None else prune
        with self.connection() as conn:
            wanted = select_wanted(conn, desired, self.plugins, selection, prune=wants_prune)
        sources = read_sources(wanted.desired, self.plugins, self.digests, advance=advance)
        with self.connection() as conn:
            before = None if migrate.pending(conn) else standing(conn, desired.project)
            plan = with_refusals(make_plan(conn, wanted, sources), self.plugins)
        is_whole = selection == EVERYTHING and self._plugins_from is None
        if is_whole and not plan.has_changes and not plan.conflicts:
            files = weight_files(desired, self.digests)
            circumstances = self._circumstances(prune)
            self._memory.keep(plan, before, desired, files, circumstances, began=began)
        return plan

    def check_first_weights(
        self, *, targets: Sequence[str] = (), excludes: Sequence[str] = ()
    ) -> None:
        """Raise `ManifestError` for absent weights where the database has no schema yet.

        In one that has, they may have been imported before: a plan tells.
        """
        from arc_halo.reconcile.planning import select_wanted
        from arc_halo.reconcile.selecting import Selection
        from arc_halo.reconcile.sources import check_all_there
        from arc_halo.store import migrate

        selection = Selection(targets=tuple(targets), excludes=tuple(excludes))
        with self.connection() as conn:
            if all(each.state == "pending" for each in migrate.status(conn)):
                desired = self.desired(conn)
                wanted = select_wanted(conn, desired, self.plugins, selection, prune=False)
                check_all_there(wanted.desired)

    def looks_unchanged(self, *, prune: bool | None = None) -> bool:
        """Whether the manifest and all that belongs to it are as when there was nothing to do."""
        return not self._rereads and self._memory.recall(self._circumstances(prune)) is not None

    @contextmanager
    def _single_connection(self) -> Iterator[Connection]:
        """A connection for one question, which needs no pool."""
        from arc_halo.store.connection import connect, translate

        with connect(self.url, waiting=self._waiting) as conn, translate():
            yield conn

    def _unchanged(self, prune: bool | None) -> Plan | None:
        """The plan of last time, where that had nothing to do and all is as it was."""
        from arc_halo.reconcile.unchanged import is_unchanged

        remembered = None if self._rereads else self._memory.recall(self._circumstances(prune))
        if remembered is None:
            return None
        with self._single_connection() as conn:
            return remembered.plan if is_unchanged(conn, remembered) else None

    @cached_property
    def _memory(self) -> Memory:
        from arc_halo.reconcile.unchanged import Memory

        return Memory(self.directory / ".arc-halo" / "unchanged.json")

    def _circumstances(self, prune: bool | None) -> Circumstances:
        from arc_halo.reconcile.unchanged import Circumstances

        return Circumstances(
            environ=self.environ,
            env=self.env,
            prune=prune,
            database=redact(self.target.url or EMBEDDED),
            allow_paths=self._allow_paths,
        )

    def plan_again(
        self, saved: SavedPlan, *, is_migrated: bool = False, advance: Advance | None = None
    ) -> Plan:
        """The plan that was saved, made anew.

        `is_migrated` says that its migrations are applied meanwhile. Raises `StalePlanError`, with
        what moved, if it is not the same any more.
        """
        from arc_halo.reconcile.saved import check_unmoved

        plan = self.plan(
            prune=saved.prune, targets=saved.targets, excludes=saved.excludes, advance=advance
        )
        with self.connection() as conn:
            check_unmoved(conn, saved.migrated() if is_migrated else saved, plan)
        return plan

    def drift(self, *, with_schema: bool = True) -> Drift:
        """What was changed outside of apply, in the project's rows and in the schema."""
        from arc_halo.reconcile.drift import find_drift

        with self.connection() as conn:
            return find_drift(conn, self.head.project, with_schema=with_schema)

    def history(self, *, limit: int | None = None) -> list[RevisionRow]:
        """The revisions of the project, the newest first."""
        from arc_halo.store import revisions

        self.check_schema()
        with self.connection() as conn:
            return revisions.listed(conn, self.head.project, limit=limit)

    def past_revision(self, number: int | None = None) -> PastRevision:
        """A revision with its changes, the last one unless `number` says.

        Raises `NotFoundError` for one that there is not.
        """
        from arc_halo.reconcile.history import find_revision

        self.check_schema()
        with self.connection() as conn:
            return find_revision(conn, self.head.project, number)

    def plan_rollback(self, revision: int) -> Plan:
        """What it takes to bring the database back to what it was after `revision`."""
        from arc_halo.reconcile.policies import with_refusals
        from arc_halo.reconcile.rolling_back import plan_rollback

        with self.connection() as conn:
            plan = plan_rollback(conn, self.head.project, revision, self.plugins)
        return with_refusals(plan, self.plugins)

    def adopt(self, address: str, *, may_take: bool = False) -> Adopted:
        """Make the project the owner of a resource that it declares, as it stands.

        `may_take` allows taking it from another project. Raises `NotFoundError` for what is not
        declared or not there, `RefusedError` for what is another project's.
        """
        from arc_halo.reconcile.adopting import adopt, parse_address

        key = parse_address(address)
        declared = self.desired().declarations
        if key not in declared:
            guess = did_you_mean(str(key), [str(each) for each in declared])
            raise NotFoundError(
                f"the manifest does not declare {key}",
                hint=guess or "declare it first: what is owned and not declared would be deleted",
            )
        with self.connection() as conn:
            return adopt(
                conn, self.manifest.project, key, directory=self.directory, may_take=may_take
            )

    def export_manifest(
        self, *, name: str | None = None, with_unmanaged: bool = False
    ) -> ExportedManifest:
        """A manifest of what the project manages, or another one of that `name`.

        Raises what `reconcile.exporting.export_manifest` does, and `InvalidInputError` where
        nothing says which project.
        """
        from arc_halo.reconcile.exporting import export_manifest

        if name is None and not self.has_manifest:
            raise InvalidInputError(
                "nothing says which project: there is no manifest here",
                hint="name it by `--name PROJECT`",
                code="AH005",
            )
        project = name or self.head.project
        head = self.head.data if self.has_manifest else {}
        plugins = self.plugins
        with self.connection() as conn:
            return export_manifest(conn, project, plugins, head=head, with_unmanaged=with_unmanaged)

    def plan_destroy(self) -> Plan:
        """What destroy would do: everything the project manages, gone."""
        from arc_halo.manifest.documents import Desired
        from arc_halo.manifest.footprint import manifest_digest
        from arc_halo.manifest.resolve import read_settings
        from arc_halo.reconcile.planning import Wanted, make_plan
        from arc_halo.reconcile.sources import Sources

        desired = Desired(
            project=self.manifest.project,
            declarations={},
            settings=read_settings(self.manifest.head),
            manifest_digest=manifest_digest(self.manifest.sources, self.plugins),
            env=self.env,
        )
        with self.connection() as conn:
            wanted = Wanted(desired=desired, plugins=self.plugins, prune=True)
            plan = make_plan(conn, wanted, Sources())
        # What is noted of the manifest is nothing to one who takes it all away.
        changes = tuple(replace(change, reason=None) for change in plan.changes)
        return replace(plan, changes=changes, notes=(), undone_by=None)

    def apply(
        self, plan: Plan, *, limits: Limits | None = None, progress: Progress | None = None
    ) -> Report:
        """Carry out a plan, all of it or nothing.

        `limits` are those of the settings unless given. Raises `RefusedError` for what goes
        beyond them, and where a policy refuses.
        """
        from arc_halo.reconcile.policies import check_policies, tell_policies

        (limits or self.limits()).check(plan)
        check_policies(plan, self.plugins)
        report = self._carry_out(plan, progress)
        if plan.changes:
            tell_policies(plan, report, self.plugins)
        return report

    def try_plan(
        self, plan: Plan, *, limits: Limits | None = None, saved: SavedPlan | None = None
    ) -> Report:
        """Carry out a plan in a transaction that is rolled back; weights are not built.

        Its migrations are applied before, in the same transaction, and it is made anew after
        them. Raises `UsageError` where no transaction may hold them, and `StalePlanError` where
        a `saved` plan does not come out as it was saved.
        """
        from arc_halo.errors import UsageError
        from arc_halo.reconcile.saved import check_unmoved
        from arc_halo.store import migrate

        limits = limits or self.limits()
        if not plan.migrations:
            with self.connection() as conn:
                return self._try(conn, plan, limits)
        with self.direct_connection() as conn, migrate.tried_up(conn) as outcome:
            if outcome.untried:
                raise UsageError(
                    f"{outcome.untried[0]} runs outside of transactions, so that it cannot be "
                    "tried, nor what comes after it",
                    hint="`arc-halo migrate up` first",
                )
            migrated = plan if saved and not saved.changes else self._migrated_plan(conn, plan)
            if saved:
                check_unmoved(conn, saved.migrated(), replace(migrated, migrations=()))
            report = self._try(conn, migrated, limits, lock_seconds=MIGRATING_LOCK_SECONDS)
        return replace(report, plan=replace(report.plan, migrations=plan.migrations))

    def _try(
        self, conn: Connection, plan: Plan, limits: Limits, *, lock_seconds: float | None = None
    ) -> Report:
        from arc_halo.reconcile.applying import try_plan
        from arc_halo.reconcile.policies import check_policies

        limits.check(plan)
        check_policies(plan, self.plugins)
        return try_plan(conn, plan, project_directory=self.directory, lock_seconds=lock_seconds)

    def _migrated_plan(self, conn: Connection, plan: Plan) -> Plan:
        """`plan`, made anew in a transaction that has applied its migrations."""
        from arc_halo.reconcile.planning import make_migrated_plan, select_wanted
        from arc_halo.reconcile.policies import with_refusals
        from arc_halo.reconcile.sources import read_sources

        desired = self.desired(conn)
        wanted = select_wanted(conn, desired, self.plugins, plan.selection, prune=plan.prune)
        sources = read_sources(wanted.desired, self.plugins, self.digests)
        return with_refusals(make_migrated_plan(conn, wanted, sources), self.plugins)

    def limits(self, *, max_deletes: int | None = None, allow_empty: bool = False) -> Limits:
        """How far an apply may go: what is given, else what `settings` say."""
        from arc_halo.reconcile.limits import Limits

        declared = self._settings.max_deletes
        chosen = declared if max_deletes is None else max_deletes
        return Limits(max_deletes=chosen, allow_empty=allow_empty)

    def _carry_out(self, plan: Plan, progress: Progress | None) -> Report:
        from arc_halo.reconcile.applying import apply_plan

        try:
            return apply_plan(
                self.weights,
                plan,
                self.plugins,
                project_directory=self.directory,
                workers=self.workers,
                progress=progress,
            )
        except WeightsError:
            self._forget_digests(plan)
            raise

    def _forget_digests(self, plan: Plan) -> None:
        """A file may change and keep its size and times: after such an error, read it anew."""
        from arc_halo.reconcile.changes import ImportBuild

        for change in plan.changes:
            if isinstance(change.build, ImportBuild):
                source = change.build.source
                self.digests.forget(source.path, source.format)
        self.digests.save()
