"""Collection: what nothing refers to any more goes, in short transactions, past live builds.

The order is that of the references: builds and history, weight sets, tensors, chunks, bodies
elsewhere. What a step leaves unreferenced the next one finds in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from arc_halo.store import collection, fused, simulation, tokenizers
from arc_halo.store.collection import Free, Span
from arc_halo.store.rows import Connection
from arc_halo.types import ChunkBodies
from arc_halo.weights.store import Advance, WeightStore, no_progress

GRACE = timedelta(hours=24)
BATCH_ROWS = 1000
RETAIN_REVISIONS = 20

Tell = Callable[[str], None]
"""Told what is looked at from now on."""


@dataclass(slots=True, kw_only=True)
class Collected:
    """What went, or would go. `bodies` counts the objects of a body store."""

    builds: int = 0
    history_entries: int = 0
    weight_sets: int = 0
    tensors: int = 0
    chunks: int = 0
    tokenizers: int = 0
    fused_tensors: int = 0
    bodies: int = 0
    freed_bytes: int = 0


def collect(
    store: WeightStore,
    *,
    grace: timedelta = GRACE,
    batch: int = BATCH_ROWS,
    retain_revisions: int = RETAIN_REVISIONS,
    tell: Tell = lambda what: None,
    advance: Advance = no_progress,
) -> Collected:
    """Delete what nothing refers to and nothing has wanted for `grace`.

    About `batch` rows are looked at, and deleted, in one transaction; interrupted anywhere, it
    has collected what it has. `advance` is told the bytes that were freed.
    """
    with store.pool.connection() as conn:
        run = _Run(conn, grace, batch, advance)
        tell("builds that nobody works at")
        run.collect_builds()
        cutoff = collection.cutoff(conn, grace)
        tell("history of models")
        run.release_history(retain_revisions)
        tell("weight sets")
        run.collect_sets(cutoff)
        tell("tensors")
        run.collect_tensors(cutoff)
        tell("chunks")
        run.collect_chunks(cutoff)
        run.collected.tokenizers = tokenizers.collect(conn)
        run.collected.fused_tensors = fused.collect(conn, batch)
    if store.bodies is not None:
        tell("bodies in the body store")
        run.collected.bodies = collect_bodies(
            store, store.bodies.bodies, store.bodies.store_id, grace=grace
        )
    return run.collected


def simulate(
    store: WeightStore, *, grace: timedelta = GRACE, retain_revisions: int = RETAIN_REVISIONS
) -> Collected:
    """What `collect` would delete now. Nothing changes."""
    store_id = None if store.bodies is None else store.bodies.store_id
    with store.pool.connection() as conn:
        found = simulation.simulate(conn, grace=grace, retain=retain_revisions, store_id=store_id)
    bodies = 0
    if store.bodies is not None:
        orphans = _orphans(store, store.bodies.bodies, store.bodies.store_id, grace)
        bodies = found.bodies + sum(len(page) for page in orphans)
    return Collected(
        builds=found.builds,
        history_entries=found.history_entries,
        weight_sets=found.weight_sets,
        tensors=found.tensors,
        chunks=found.chunks,
        tokenizers=found.tokenizers,
        fused_tensors=found.fused_tensors,
        bodies=bodies,
        freed_bytes=found.freed_bytes,
    )


def collect_bodies(
    store: WeightStore, bodies: ChunkBodies, store_id: int, *, grace: timedelta
) -> int:
    """Delete the bodies of a body store that belong to no chunk; how many.

    Those younger than `grace` stay: a database put back from yesterday's backup names fewer.

    Whoever writes there holds a lock from before the upload until the rows are committed, so
    that under ours a body without a row is nobody's.
    """
    count = 0
    for page in _orphans(store, bodies, store_id, grace):
        with store.pool.connection() as conn, conn.transaction():
            collection.lock_bodies(conn)
            found = collection.orphans(conn, page, store_id)
            bodies.delete(found)
        count += len(found)
    return count


def _orphans(
    store: WeightStore, bodies: ChunkBodies, store_id: int, grace: timedelta
) -> Iterator[list[bytes]]:
    """Pages of bodies that have no chunk, or whose chunk is being written: looked at unlocked."""
    for page in bodies.pages(older_than=grace):
        with store.pool.connection() as conn:
            found = collection.orphans(conn, page, store_id)
        if found:
            yield found


class _Run:
    """One collection over one connection."""

    def __init__(self, conn: Connection, grace: timedelta, batch: int, advance: Advance) -> None:
        self.collected = Collected()
        self._conn = conn
        self._grace = grace
        self._batch = batch
        self._advance = advance

    def collect_builds(self) -> None:
        after = collection.FIRST_UUID
        while ids := collection.stale_builds(
            self._conn, after=after, grace=self._grace, batch=self._batch
        ):
            self.collected.builds += collection.drop_builds(self._conn, ids, grace=self._grace)
            after = ids[-1]

    def release_history(self, retain: int) -> None:
        after = collection.FIRST_UUID
        while models := collection.model_page(self._conn, after=after, batch=self._batch):
            after = models[-1]
            released = self._batch
            while released == self._batch:
                released = collection.release_history(
                    self._conn, models, retain=retain, batch=self._batch
                )
                self.collected.history_entries += released

    def collect_sets(self, cutoff: datetime) -> None:
        span = collection.set_page(self._conn, after=0, batch=self._batch)
        while span is not None:
            for ids in _groups(collection.free_sets(self._conn, span, cutoff), self._batch):
                self._delete_sets(span, ids, cutoff)
            span = collection.set_page(self._conn, after=_key(span), batch=self._batch)

    def collect_tensors(self, cutoff: datetime) -> None:
        span = collection.tensor_page(self._conn, after=0, batch=self._batch)
        while span is not None:
            for ids in _groups(collection.free_tensors(self._conn, span, cutoff), self._batch):
                self._delete_tensors(span, ids, cutoff)
            span = collection.tensor_page(self._conn, after=_key(span), batch=self._batch)

    def collect_chunks(self, cutoff: datetime) -> None:
        """Deltas first: what only they were taken against is free afterwards."""
        if collection.has_deltas(self._conn):
            self._collect_chunks(cutoff, deltas=True)
        self._collect_chunks(cutoff, deltas=False)

    def _collect_chunks(self, cutoff: datetime, *, deltas: bool) -> None:
        after = b""
        while span := collection.chunk_page(self._conn, after=after, batch=self._batch):
            if free := collection.free_chunks(self._conn, span, cutoff, deltas=deltas):
                self._delete_chunks(span, free, cutoff, deltas)
            assert isinstance(span.last, bytes)
            after = span.last

    # Each of the three locks what looked free, passing over what others hold, looks again in a
    # new statement, which sees all that was committed before the locks, and deletes.

    def _delete_sets(self, span: Span, ids: Sequence[int], cutoff: datetime) -> None:
        with self._conn.transaction():
            locked = collection.lock_sets(self._conn, ids)
            free = collection.free_sets(self._conn, span, cutoff, locked)
            builds, sets = collection.delete_sets(self._conn, [s.id for s in free], cutoff)
        self.collected.builds += builds
        self.collected.weight_sets += sets

    def _delete_tensors(self, span: Span, ids: Sequence[int], cutoff: datetime) -> None:
        with self._conn.transaction():
            locked = collection.lock_tensors(self._conn, ids)
            free = collection.free_tensors(self._conn, span, cutoff, locked)
            tensors = collection.delete_tensors(self._conn, [tensor.id for tensor in free])
        self.collected.tensors += tensors

    def _delete_chunks(
        self, span: Span, digests: Sequence[bytes], cutoff: datetime, deltas: bool
    ) -> None:
        with self._conn.transaction():
            locked = collection.lock_chunks(self._conn, digests)
            free = collection.free_chunks(self._conn, span, cutoff, deltas=deltas, digests=locked)
            sizes = collection.delete_chunks(self._conn, free)
        self.collected.chunks += len(sizes)
        self.collected.freed_bytes += sum(sizes)
        self._advance(sum(sizes))


def _key(span: Span) -> int:
    assert isinstance(span.last, int)
    return span.last


def _groups(found: Sequence[Free], limit: int) -> Iterator[list[int]]:
    """Their ids in groups that take about `limit` rows with them."""
    group: list[int] = []
    rows = 0
    for item in found:
        if group and rows + item.rows > limit:
            yield group
            group, rows = [], 0
        group.append(item.id)
        rows += item.rows + 1
    if group:
        yield group
