"""A worker of a merge: it claims a tensor, computes it, stores it, and claims the next.

The task table is the truth. A claim is a row lock: it dies with the worker's connection, and
another worker takes the tensor up. Chunks go in beside it, idempotently, over a connection of their
own; the tensor, its place in the set and the finished task are one transaction.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from arc_halo.errors import FusionError, WeightsError
from arc_halo.fusion.computing import OpenSource, fused_pieces
from arc_halo.fusion.facts import Observer
from arc_halo.fusion.pulse import pulse
from arc_halo.fusion.tensor_recipes import TensorRecipe, TensorSource, from_identity
from arc_halo.store import builds, fusions
from arc_halo.store.fusions import Claim
from arc_halo.store.rows import Connection
from arc_halo.store.tensors import by_digest, insert_tensors
from arc_halo.types import FusionStrategy, JsonObject, TensorInfo
from arc_halo.weights.bases import Bases
from arc_halo.weights.making import TensorMaker
from arc_halo.weights.spans import StoredTensor
from arc_halo.weights.store import Advance, WeightStore, no_progress
from arc_halo.weights.threads import Cancellation
from arc_halo.weights.writing import ChunkWriter, Heart, Session, Totals

Strategies = Mapping[str, tuple[FusionStrategy, str]]
"""What a worker can compute: each strategy, by its name, with its version."""


@dataclass(slots=True, kw_only=True)
class Worked:
    """What a worker has done: tensors computed, and what was stored for them."""

    tensors: int
    totals: Totals


def work(
    store: WeightStore,
    strategies: Strategies,
    build_id: UUID,
    *,
    advance: Advance = no_progress,
    cancellation: Cancellation | None = None,
    needs_driver: bool = False,
) -> Worked:
    """Work at a build until no task is left that nobody works at, or one has failed.

    One that `needs_driver` stops when nobody drives the build any more. What a strategy cannot do
    is written down in the task, for whoever waits for the build. Raises what reading, storing and
    connecting raise.
    """
    cancellation = cancellation or Cancellation()
    with (
        cancellation.guard(),
        store.pool.connection() as claims,
        cancellation.watch(claims),
        store.pool.connection() as conn,
        cancellation.watch(conn),
        pulse(store, build_id, claims),
    ):
        session = Session(
            build_id=build_id,
            since=builds.clock(conn),
            codec=None,
            bases=Bases.of_root(store, None),
            heart=Heart(),
        )
        writer = ChunkWriter(store, conn, session)
        worker = _Worker(store, strategies, build_id, claims, writer, advance, cancellation)
        worker.needs_driver = needs_driver
        while worker.do_next():
            cancellation.check()
        return Worked(tensors=worker.tensors, totals=writer.totals)


def compute(
    store: WeightStore, recipe: TensorRecipe, observer: Observer | None = None
) -> Iterator[memoryview]:
    """The raw bytes of a fused tensor whose inputs are in the database."""
    return fused_pieces(recipe, stored_sources(store, recipe), share_of(store), observer)


def share_of(store: WeightStore) -> int:
    """A thread's bytes for windows; the rest is for parts as floats, and for what is written."""
    return store.memory_bytes // (4 * store.threads)


def stored_sources(store: WeightStore, recipe: TensorRecipe) -> OpenSource:
    """Opens the inputs of a tensor, which are in the database."""
    wanted = [source.digest for source in recipe.all_sources if source.digest is not None]
    with store.pool.connection() as conn:
        found = by_digest(conn, wanted)

    def open_source(source: TensorSource) -> StoredTensor:
        row = found.get(source.digest or b"")
        if row is None:
            raise WeightsError(
                f"{source.tensor!r} of {source.model}, which {recipe.name!r} is made of, is not "
                "stored any more",
                hint="apply the manifest that declares this model",
                code="AH064",
            )
        return StoredTensor(store, row, source.tensor)

    return open_source


def known_recipe(
    identity: JsonObject, labels: list[JsonObject], size_bytes: int, strategies: Strategies
) -> TensorRecipe:
    """The recipe of a tensor, with its strategy found.

    Raises `FusionError` where the strategy is not there, or of another version.
    """
    name, wanted = identity["strategy"], identity["strategy_version"]
    strategy, version = strategies.get(name, (None, None))
    if strategy is None or version != wanted:
        here = f"it is of version {version}" if strategy else "there is none"
        raise FusionError(
            f"the merge was planned with the strategy {name!r} of version {wanted}; here {here}",
            hint="give every worker the same plugins",
        )
    return from_identity(identity, labels, strategy, size_bytes)


class _Worker:
    """Does one task after another over two connections: one for claims, one for chunks."""

    def __init__(
        self,
        store: WeightStore,
        strategies: Strategies,
        build_id: UUID,
        claims: Connection,
        writer: ChunkWriter,
        advance: Advance,
        cancellation: Cancellation,
    ) -> None:
        self.tensors = 0
        self.needs_driver = False
        self._store = store
        self._strategies = strategies
        self._build_id = build_id
        self._claims = claims
        self._writer = writer
        self._advance = advance
        self._cancellation = cancellation
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def do_next(self) -> bool:
        """Do a task; whether there was one."""
        claim = None
        try:
            with self._claims.transaction():
                if self.needs_driver and not fusions.has_driver(self._claims, self._build_id):
                    return False
                claim = fusions.claim(self._claims, self._build_id)
                if claim is not None:
                    self._do(claim)
        except FusionError as exc:
            assert claim is not None
            error = {"code": exc.code, "message": exc.message, "hint": exc.hint}
            fusions.fail(self._claims, self._build_id, claim.ordinal, error, worker=self._name)
            return False
        return claim is not None

    def _do(self, claim: Claim) -> None:
        if claim.key is None:
            raise WeightsError(
                f"{claim.name!r} is to be taken as it is, and is not stored any more",
                hint="apply the manifest that declares its model",
                code="AH064",
            )
        identity, tensor_id = fusions.lock_recipe(self._claims, claim.key)
        is_reused = tensor_id is not None
        if tensor_id is None:
            tensor_id = self._make(claim, claim.key, identity)
            self.tensors += 1
        else:
            self._advance(claim.size_bytes)
        builds.add_tensors(self._claims, self._build_id, [(claim.name, claim.ordinal, tensor_id)])
        fusions.finish(
            self._claims, self._build_id, claim.ordinal, worker=self._name, is_reused=is_reused
        )

    def _make(self, claim: Claim, key: bytes, identity: JsonObject) -> int:
        started = time.thread_time()
        observer = Observer()
        recipe = known_recipe(identity, claim.labels, claim.size_bytes, self._strategies)
        info = TensorInfo(
            name=recipe.name, dtype=recipe.dtype, shape=recipe.shape, size_bytes=recipe.size_bytes
        )
        maker = TensorMaker(
            self._store,
            self._writer,
            lambda _: compute(self._store, recipe, observer),
            self._advance,
            self._cancellation,
        )
        new = maker.make(info)
        maker.flush()
        tensor_id = insert_tensors(self._claims, [new])[new.digest]
        cpu_seconds = time.thread_time() - started
        fusions.record(self._claims, key, new.digest, observer.facts, cpu_seconds)
        return tensor_id
