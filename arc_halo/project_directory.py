"""A project directory, opened: its manifest, its plugins and its database."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from arc_halo.config import (
    PROJECT_FILE,
    DatabaseTarget,
    database_target,
    environment_name,
    load_environment,
)
from arc_halo.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.fusion.driving import Workers
    from arc_halo.manifest.documents import BodiesSetting, Desired, Settings
    from arc_halo.manifest.head import Head
    from arc_halo.manifest.reading import Manifest
    from arc_halo.plugins import PluginManager
    from arc_halo.reactors.allowing import Allowance
    from arc_halo.reactors.running import RunningReactor
    from arc_halo.store.connection import Waiting
    from arc_halo.store.rows import Connection, Pool
    from arc_halo.transfer.sources import DigestCache
    from arc_halo.weights.store import OpenBodies, WeightStore


class ProjectDirectory:
    """What a project has, each in its place; close it, or use it in a `with`.

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

    def keep_open(self) -> None:
        """Have the embedded server run until `close`, whoever else comes and goes."""
        if self.target.url is None:
            _ = self.url

    def close(self) -> None:
        """Close connections, and stop the embedded server if nobody else uses it."""
        self._is_closed = True
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _executor_name(self) -> tuple[str, str]:
        name, _, address = (self._executor or self._settings.executor).partition("://")
        return name, address

    @property
    def _settings(self) -> Settings:
        from arc_halo.manifest.resolve import read_settings

        return read_settings(self.manifest.head if self.has_manifest else {})
