"""A project directory, opened: its manifest, its plugins, its database, in one handle."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from arc_halo.config import (
    EMBEDDED,
    PROJECT_FILE,
    DatabaseTarget,
    database_target,
    environment_name,
    load_environment,
    redact,
)
from arc_halo.errors import InvalidInputError, NotFoundError, WeightsError
from arc_halo.names import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.fusion.driving import Workers
    from arc_halo.manifest.documents import BodiesSetting, Desired, Settings
    from arc_halo.manifest.head import Head
    from arc_halo.manifest.reading import Manifest
    from arc_halo.plugins import PluginManager
    from arc_halo.reactors.allowing import Allowance
    from arc_halo.reactors.running import RunningReactor
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
    from arc_halo.store.connection import Waiting
    from arc_halo.store.revisions import RevisionRow
    from arc_halo.store.rows import Connection, Pool
    from arc_halo.transfer.sources import Advance, DigestCache
    from arc_halo.weights.store import OpenBodies, WeightStore


MIGRATING_LOCK_SECONDS = 2.0
"""How long a dry run waits for others while it holds tables that it has migrated."""


class Project:
    """Everything a command or a script needs of a project; close it, or use it in a `with`.

    Nothing is read and nothing is started before it is needed. `directory` need not hold a
    manifest for what works on the database alone.
    """

    def __init__(
        self,
        directory: Path,
        *,
        database_url: str | None = None,
        environ: Mapping[str, str] | None = None,
        allow_paths: Sequence[Path] = (),
        waiting: Waiting | None = None,
        executor: str | None = None,
        env: str | None = None,
        rereads: bool = False,
        plugins_from: str | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self._flag = database_url
        self._environ = os.environ if environ is None else environ
        self._allow_paths = tuple(allow_paths)
        self._waiting = waiting
        self._executor = executor
        self._env = env
        self._plugins_from = plugins_from
        self._stack = ExitStack()
        # What is remembered of a manifest is of the checkout's own plugins.
        self._rereads = rereads or plugins_from is not None
        self._is_closed = False

    @cached_property
    def environ(self) -> dict[str, str]:
        """The environment, with what `.env` beside the manifest adds."""
        return load_environment(self.directory, self._environ)

    @cached_property
    def env(self) -> str | None:
        """The environment whose overlay is merged: `--env`, or else `ARC_HALO_ENV`."""
        return environment_name(self._env, self.environ)

    @property
    def has_manifest(self) -> bool:
        return (self.directory / "arc_halo.yaml").is_file()

    @cached_property
    def head(self) -> Head:
        """What the project file says of the project itself, whatever the rest is like."""
        from arc_halo.manifest.head import read_head

        return read_head(
            self.directory, self.environ, environment=self.env, allow_paths=self._allow_paths
        )

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, loaded and validated. Raises `ManifestError` with every problem."""
        from arc_halo.manifest.reading import read_manifest

        if not self.has_manifest:
            raise NotFoundError(
                f"there is no arc_halo.yaml in {self.directory}",
                hint="run `arc-halo init` to begin a project",
            )
        return read_manifest(
            self.directory,
            env=self.environ,
            allow_paths=self._allow_paths,
            environment=self.env,
            plugins_from=self._plugins_from,
        )

    @cached_property
    def plugins(self) -> PluginManager:
        """The manifest's plugins; without a manifest, the built-in and the installed ones."""
        from arc_halo.plugins import PluginManager

        return self.manifest.plugins if self.has_manifest else PluginManager.load()

    @cached_property
    def target(self) -> DatabaseTarget:
        """Which database is meant, and what said so."""
        is_decided = self._flag or self.environ.get("ARC_HALO_DATABASE_URL")
        declared = None if is_decided else self.head.database()
        try:
            return database_target(
                flag=self._flag,
                environ=self.environ,
                manifest_database=declared,
                manifest_file=PROJECT_FILE if is_decided else self.head.database_file,
            )
        except InvalidInputError as exc:
            if not declared:
                raise
            raise self.head.placed(exc) from exc

    @cached_property
    def url(self) -> str:
        """The database's address; the embedded server runs from here on until `close`."""
        if self.target.url is not None:
            return self.target.url
        from arc_halo import embedded

        return self._stack.enter_context(embedded.acquire(self.directory)).url

    @cached_property
    def pool(self) -> Pool:
        """Connections that work behind a pooler too."""
        from arc_halo.store.connection import connect, pool

        # The first connection is made by hand: it waits for a sleeping server, a pool does not.
        connect(self.url, waiting=self._waiting).close()
        return self._stack.enter_context(pool(self.url, 4 * self.head.threads + 3))

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection of the pool. Raises `InvalidInputError` after the end."""
        if self._is_closed:
            raise InvalidInputError("it is closed", hint="connect again", code="AH006")
        with self.pool.connection() as conn:
            yield conn

    @cached_property
    def weights(self) -> WeightStore:
        """The tensors of the database, with this project's codecs and limits."""
        from arc_halo.weights.store import WeightStore

        codecs = {name: provided.item for name, provided in self.plugins.codecs.items()}
        if not self.has_manifest:
            return WeightStore(pool=self.pool, codecs=codecs)
        from arc_halo.manifest.resolve import read_settings

        settings = read_settings(self.manifest.head)
        return WeightStore(
            pool=self.pool,
            codecs=codecs,
            codec=settings.codec,
            chunk_bytes=settings.chunk_bytes,
            memory_bytes=settings.memory_bytes,
            threads=settings.threads,
            bodies=self._open_bodies(settings.bodies),
        )

    def _open_bodies(self, setting: BodiesSetting | None) -> OpenBodies | None:
        from arc_halo.weights.bodies import open_bodies

        if setting is None:
            return None
        descriptor = self.plugins.body_store(setting.store)
        return self._stack.enter_context(open_bodies(self.pool, descriptor, setting.url))

    def check_executor(self) -> None:
        """Raise `UnknownPluginError` for an executor that no plugin provides."""
        self.plugins.executor(self._executor_name[0])

    @cached_property
    def workers(self) -> Workers:
        """Where merges are computed: `--executor`, or `settings.executor`."""
        from arc_halo.fusion.driving import Workers

        name, address = self._executor_name
        bodies = self._settings.bodies
        return Workers(
            executor=self.plugins.executor(name),
            address=address or None,
            url=self.url,
            is_embedded=self.target.url is None,
            plugin_files=tuple(self.plugins.files.items()),
            bodies=(bodies.store, bodies.url) if bodies else None,
        )

    @cached_property
    def allowance(self) -> Allowance:
        """What runners may use here: files of the project, and what `settings.allow` lists."""
        from arc_halo.reactors.allowing import Allowance

        return Allowance(
            directory=self.directory,
            allow_paths=self._allow_paths,
            hosts=self._settings.allowed_hosts,
            secrets=self._settings.allowed_secrets,
            environ=self.environ,
        )

    def open_reactor(self, name: str) -> AbstractContextManager[RunningReactor]:
        """A reactor with its members started. Raises what `reactors.opening.open_reactor` does."""
        from arc_halo.reactors.opening import open_reactor

        self.check_schema()
        return open_reactor(self.weights, self.plugins, self.allowance, name)

    @cached_property
    def digests(self) -> DigestCache:
        from arc_halo.transfer.sources import DigestCache

        return DigestCache(self.directory / ".arc-halo" / "digests.json")

    @contextmanager
    def direct_connection(self) -> Iterator[Connection]:
        """A connection of its own that no pooler stands in, for what needs a session.

        Raises `InvalidInputError` where `ARC_HALO_DIRECT_DATABASE_URL` leads to another database.
        """
        from arc_halo.store.connection import connect
        from arc_halo.store.server import place_of

        # An address on the command line is the whole address.
        direct = None if self._flag else self.environ.get("ARC_HALO_DIRECT_DATABASE_URL")
        with connect(direct or self.url, direct=True, waiting=self._waiting) as conn:
            if direct:
                with self.connection() as usual:
                    if place_of(conn) != place_of(usual):
                        raise InvalidInputError(
                            "ARC_HALO_DIRECT_DATABASE_URL leads to another database than "
                            f"{self.target.origin}",
                            hint="give both the same server and database, or leave the direct "
                            "address out where there is no pooler",
                            code="AH090",
                        )
            yield conn

    def migrate(self) -> list[str]:
        """Apply pending migrations, on a direct connection; their ids."""
        from arc_halo.store import migrate

        with self.direct_connection() as conn:
            return migrate.up(conn)

    def check_schema(self) -> None:
        """Raise `SchemaMismatchError` unless the database is migrated as this program needs."""
        from arc_halo.store import migrate

        with self.connection() as conn:
            migrate.check(conn)

    def desired(self, conn: Connection | None = None) -> Desired:
        """The desired state, aliases looked up in the database where the manifest uses any."""
        from arc_halo.manifest.resolve import alias_references, resolve
        from arc_halo.reconcile import state
        from arc_halo.store import migrate

        registered = {}
        if references := alias_references(self.manifest.sources):
            with nullcontext(conn) if conn else self.connection() as conn:
                if not migrate.pending(conn):
                    registered = state.registered_models(conn, references)
        return resolve(
            self.manifest.sources,
            self.manifest.plugins,
            allow_paths=self._allow_paths,
            registered=registered,
        )

    def desired_without_database(self) -> Desired:
        """The desired state, aliases taken on trust. Raises `ManifestError` before any server
        starts."""
        from arc_halo.manifest.resolve import resolve

        return resolve(self.manifest.sources, self.manifest.plugins, allow_paths=self._allow_paths)

    @property
    def retain_revisions(self) -> int:
        """`settings.retain_revisions`: how many weight sets of a model's history are kept."""
        return self._settings.retain_revisions

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

    def keep_open(self) -> None:
        """Have the embedded server run until `close`, whoever else comes and goes."""
        if self.target.url is None:
            _ = self.url

    def close(self) -> None:
        """Close connections, and stop the embedded server if nobody else uses it."""
        self._is_closed = True
        self._stack.close()

    def __enter__(self) -> Project:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _forget_digests(self, plan: Plan) -> None:
        """A file may change and keep its size and times: after such an error, read it anew."""
        from arc_halo.reconcile.changes import ImportBuild

        for change in plan.changes:
            if isinstance(change.build, ImportBuild):
                source = change.build.source
                self.digests.forget(source.path, source.format)
        self.digests.save()

    @property
    def _executor_name(self) -> tuple[str, str]:
        name, _, address = (self._executor or self._settings.executor).partition("://")
        return name, address

    @property
    def _settings(self) -> Settings:
        from arc_halo.manifest.resolve import read_settings

        return read_settings(self.manifest.head if self.has_manifest else {})
