"""`halo.inference`: models at work, what their requests took, what they have again, and what was
captured of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from arc_halo.api._finding import GivenModel, find_model, find_root
from arc_halo.api.captures import Captures
from arc_halo.errors import NotFoundError
from arc_halo.names import parse_reference, shown
from arc_halo.project import Project
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from arc_halo.inference.deleting import Deletion
    from arc_halo.inference.keys import Scope
    from arc_halo.inference.kv_cache import KVCache
    from arc_halo.inference.layouts import KVLayout
    from arc_halo.inference.reading import GivenSession
    from arc_halo.inference.sessions import InferenceSession
    from arc_halo.inference.transformers_cache import TransformersCache
    from arc_halo.store.inference_metrics import Latency
    from arc_halo.store.inference_sessions import SessionRow


class Inference(Captures):
    """Models at work. What is recorded here belongs to no manifest."""

    def __init__(self, project: Project) -> None:
        super().__init__(project)
        self._sessions: WeakSet[InferenceSession] = WeakSet()
        self._caches: WeakSet[TransformersCache | KVCache] = WeakSet()

    def close(self, error: BaseException | None = None) -> None:
        """End the sessions that nobody has ended, with an `error` as failed, and write what waits
        in caches."""
        for cache in list(self._caches):
            cache.close()
        for session in list(self._sessions):
            if error is None:
                session.end_with_program()
            else:
                session.__exit__(type(error), error, error.__traceback__)

    def session(
        self,
        model: GivenModel,
        *,
        config: JsonObject | None = None,
        tenant: str = "",
        root: bytes | None = None,
        flush_seconds: float = 1.0,
        heartbeat_seconds: float = 10.0,
        queue_requests: int = 100_000,
    ) -> InferenceSession:
        """Begin a session of a model that answers requests, for use in a `with`.

        `model` is `name@version`, registered or not, or a reference to one that is. `root` is that
        of the weights that answer, where they are not the registered ones. What is recorded is
        written every `flush_seconds`; while the database is away `queue_requests` of them may wait.
        Raises `NotFoundError`, `InvalidInputError`, `DatabaseError`.
        """
        from arc_halo.inference.checking import check_given, given_root
        from arc_halo.inference.recording import record_settings
        from arc_halo.inference.sessions import begin
        from arc_halo.plain import check_plain, covered
        from arc_halo.store.connection import connect

        settings = record_settings(
            flush_seconds=flush_seconds,
            heartbeat_seconds=heartbeat_seconds,
            queue_requests=queue_requests,
        )
        check_plain(config=config)
        check_given(tenant=tenant)
        own_root = None if root is None else given_root(root)
        with self._project.connection() as conn:
            name, version, registered = _named(conn, model)
        url = self._project.url
        session = begin(
            lambda: connect(url, application_name="arc-halo inference", timeout_seconds=0),
            model=(name, version),
            root=registered if own_root is None else own_root,
            tenant=tenant,
            config=covered(config or {}),
            settings=settings,
        )
        self._sessions.add(session)
        return session

    def list(
        self,
        *,
        model: str | None = None,
        tenant: str | None = None,
        status: str | None = None,
        limit: int | None = None,
    ) -> list[SessionRow]:
        """Sessions as they stand, the newest first. `model` is a name, name@version or name:alias.

        Raises `InvalidInputError` for no status, and what is no text or no number, and
        `NotFoundError` for an alias of no model.
        """
        from arc_halo.inference import reading

        with self._project.connection() as conn:
            return reading.sessions(conn, model=model, tenant=tenant, status=status, limit=limit)

    def get(self, session: GivenSession) -> SessionRow:
        """A session as it stands, by its id or the beginning of that, or by what `session`, `list`
        or `get` gave. Raises `NotFoundError`."""
        from arc_halo.inference import reading

        with self._project.connection() as conn:
            return reading.session(conn, session)

    def latency(self, session: GivenSession) -> Latency:
        """What the requests of a session took, in percentiles. Raises `NotFoundError`."""
        from arc_halo.inference import reading

        with self._project.connection() as conn:
            return reading.latency(conn, reading.session(conn, session).id)

    def delete(self, *sessions: GivenSession) -> Deletion:
        """Delete sessions, named as for `get`, with what their requests took and the attention that
        was captured in them; all or none, and tell what went.

        Raises `NotFoundError`, and `RefusedError` where a program is at work on one.
        """
        from arc_halo.inference import deleting, reading

        with self._project.connection() as conn:
            ids = list(dict.fromkeys(reading.session(conn, each).id for each in sessions))
            return deleting.delete(conn, ids)

    def prune(
        self,
        older_than: timedelta,
        *,
        model: str | None = None,
        tenant: str | None = None,
        dry_run: bool = False,
    ) -> Deletion:
        """Delete sessions that have been over for so long, and tell what went.

        Those that a program is at work on stay, with their counts: of them goes what requests took
        that are as old. Raises `InvalidInputError` for what is no age.
        """
        from arc_halo.inference import deleting

        with self._project.connection() as conn:
            return deleting.prune(conn, older_than, model=model, tenant=tenant, dry_run=dry_run)

    def transformers_cache(
        self,
        model: Any,
        *,
        tenant: str = "",
        adapter: str = "",
        storage: str | None = None,
        block_tokens: int | None = None,
        record_windows: bool = True,
    ) -> TransformersCache:
        """A cache of the prompts of a causal model of transformers, for use in a `with`.

        Stored prompts are found by the model's weights, config and active adapters, and by
        `tenant`, which is for the server to say, not for its clients. `adapter` names what else
        changes the model, and cannot be seen in it. `storage` is a codec, or `int8`, which is
        lossy; it and `block_tokens` are what a manifest declares where they are not given, else
        `planes` and 64. Without `record_windows` sliding layers take little more memory than they
        would, and only prompts that go on where one ended find it.

        Raises `InvalidInputError` for a model in training, for one whose cache is not of full and
        sliding layers, and for a tenant of more than 255 bytes, and `ArcHaloError` where
        transformers is not installed.
        """
        from arc_halo.inference.arguments import check_names
        from arc_halo.inference.transformers_cache import TransformersCache

        check_names(tenant=tenant, adapter=adapter)
        cache = TransformersCache(
            model,
            self._opener(storage, block_tokens),
            tenant=tenant,
            adapter_name=adapter,
            record_windows=record_windows,
        )
        self._caches.add(cache)
        return cache

    def kv_cache(
        self,
        layout: KVLayout,
        *,
        weights: bytes | GivenModel,
        adapter: str = "",
        tenant: str = "",
        storage: str | None = None,
        block_tokens: int | None = None,
    ) -> KVCache:
        """Blocks of keys and values of any engine, as arrays, for use in a `with`.

        `weights` is the root of those that it computes with, or a registered model. What else
        decides keys and values goes into the `layout` and its `engine`; all else is as for
        `transformers_cache`. Raises `NotFoundError`, and `InvalidInputError` for a layout whose
        blocks could not be stored.
        """
        from arc_halo.inference.arguments import check_names
        from arc_halo.inference.keys import Scope

        check_names(tenant=tenant, adapter=adapter)
        with self._project.connection() as conn:
            root = find_root(conn, weights)
        scope = Scope(
            weights=root,
            adapter=adapter.encode(),
            tenant=tenant,
            model=weights if isinstance(weights, str) else getattr(weights, "full_name", ""),
        )
        cache = self._opener(storage, block_tokens)(layout, scope)
        self._caches.add(cache)
        return cache

    def _opener(
        self, storage: str | None, block_tokens: int | None
    ) -> Callable[[KVLayout, Scope], KVCache]:
        """Opens KV caches as they are declared, where it is not given."""
        from arc_halo.inference.kv_cache import BLOCK_TOKENS, STORAGE, KVCache
        from arc_halo.store import cache_policies

        with self._project.connection() as conn:
            declared = cache_policies.find(conn, "kv_cache")
        usual = (STORAGE, BLOCK_TOKENS)
        if declared is not None:
            usual = (declared.codec or STORAGE, declared.block_tokens or BLOCK_TOKENS)
        return partial(
            KVCache,
            self._project.pool,
            {name: each.item for name, each in self._project.plugins.codecs.items()},
            storage=usual[0] if storage is None else storage,
            block_tokens=usual[1] if block_tokens is None else block_tokens,
        )


def _named(conn: Connection, model: GivenModel) -> tuple[str, str, bytes | None]:
    """Name, version and root of a model. One that is written out need not be registered."""
    reference = parse_reference(model) if isinstance(model, str) else None
    try:
        found = find_model(conn, model)
    except NotFoundError as exc:
        if reference is not None and reference.version is not None:
            return reference.name, reference.version, None
        if reference is None:
            raise
        raise NotFoundError(
            f"there is no model {shown(model)}",
            hint="one that is not registered has a version: write name@1.0.0",
        ) from exc
    return found.name, found.version, found.root
