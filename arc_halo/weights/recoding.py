"""Moving stored chunks to another codec, or to where the project keeps bodies now.

Digests and roots stay as they are: they are of raw bytes. Each batch is a transaction, and what
is done stays done, so an interrupted run is simply run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from arc_halo.store import builds, chunks, recoding
from arc_halo.store.chunks import NewChunk, StoredChunk
from arc_halo.store.rows import Connection
from arc_halo.types import TensorInfo
from arc_halo.weights.bases import Bases
from arc_halo.weights.decoding import decode_base, decode_chunk, naming, naming_chunk, with_bodies
from arc_halo.weights.encoding import Base, encode_chunk
from arc_halo.weights.store import AUTO, Advance, OpenBodies, WeightStore, no_progress

KEEP = "keep"
"""Stands for the codec that a chunk has: only where its body is changes."""

BATCH_CHUNKS = 16

UNTYPED = "U8"
"""The dtype that chunks of no tensor are taken for."""


@dataclass(slots=True)
class Recoded:
    """What was looked at, what was written anew, and the stored bytes of that before and after."""

    chunks: int = 0
    changed: int = 0
    before_bytes: int = 0
    after_bytes: int = 0

    def count(self, stored: Sequence[StoredChunk], changed: Mapping[bytes, NewChunk]) -> None:
        self.chunks += len(stored)
        self.changed += len(changed)
        before = {chunk.digest: _stored_bytes(chunk) for chunk in stored}
        self.before_bytes += sum(before[digest] for digest in changed)
        self.after_bytes += sum(len(chunk.body) for chunk in changed.values())


@dataclass(frozen=True, slots=True)
class _Batch:
    """Chunks of one dtype, and what deltas may be taken against, by index.

    `tensor` is what they are of, where all are of one.
    """

    dtype: str
    stored: Sequence[StoredChunk]
    bases: dict[int, Base]
    tensor: str | None = None


def recode(
    store: WeightStore,
    *,
    codec: str,
    weight_set_id: int | None = None,
    delta_from: bytes | None = None,
    into_database: bool = False,
    dry_run: bool = False,
    advance: Advance = no_progress,
) -> Recoded:
    """Write anew what `codec` (a name, `auto` or `keep`) would store otherwise.

    All chunks, or those of one weight set; for a set, deltas may be taken against the weights of
    root `delta_from`. Bodies go to the body store of `store`, if it has one, or `into_database`.
    Raises `CorruptChunkError` and `MissingChunkError` for what cannot be read.
    """
    done = Recoded()
    place = None if into_database else store.bodies
    with store.pool.connection() as conn:
        batches = (
            _all_batches(store, conn)
            if weight_set_id is None
            else _set_batches(store, conn, weight_set_id, Bases.of_root(store, delta_from))
        )
        for batch in batches:
            changed = _changed(store, conn, batch, codec, place)
            if changed and not dry_run:
                _write(conn, changed, place)
            done.count(batch.stored, changed)
            advance(sum(c.encoded.raw_bytes for c in batch.stored if c.encoded))
    return done


def _all_batches(store: WeightStore, conn: Connection) -> Iterator[_Batch]:
    after = b""
    while page := recoding.page(conn, after, BATCH_CHUNKS):
        after = page[-1].digest
        # What is of no tensor counts too: bases that only their deltas need, builds under way.
        for dtype in sorted({row.dtype or UNTYPED for row in page}):
            digests = [bytes(row.digest) for row in page if (row.dtype or UNTYPED) == dtype]
            with closing(chunks.read_chunks_by_digest(conn, digests)) as stream:
                # What was collected since the page was read is no damage.
                there = (chunk for chunk in stream if chunk.encoded is not None)
                yield _Batch(dtype, list(with_bodies(store, there)), {})


def _set_batches(
    store: WeightStore, conn: Connection, weight_set_id: int, bases: Bases
) -> Iterator[_Batch]:
    for row in builds.set_tensors(conn, weight_set_id):
        info = TensorInfo(
            name=row.name, dtype=row.dtype, shape=tuple(row.shape), size_bytes=row.size_bytes
        )
        for first in range(0, row.chunk_count, BATCH_CHUNKS):
            indexes = range(first, min(first + BATCH_CHUNKS, row.chunk_count))
            with closing(chunks.read_chunks(conn, row.id, indexes)) as stream:
                wanted = (chunk for chunk in stream if chunk.index in indexes)
                stored = list(with_bodies(store, wanted))
            found = bases.read(conn, info, indexes) if row.chunk_bytes == store.chunk_bytes else {}
            yield _Batch(row.dtype, stored, found, row.name)


def _changed(
    store: WeightStore,
    conn: Connection,
    batch: _Batch,
    codec: str,
    place: OpenBodies | None,
) -> dict[bytes, NewChunk]:
    needed = recoding.used_as_base(conn, [chunk.digest for chunk in batch.stored])
    changed: dict[bytes, NewChunk] = {}
    for chunk in batch.stored:
        base = batch.bases.get(chunk.index)
        if chunk.digest in needed or (base and _is_no_base(base.digest, chunk.digest, changed)):
            base = None
        now = _recoded(store, chunk, batch, codec, base)
        if chunk.digest not in changed and _differs(chunk, now, place):
            changed[chunk.digest] = now
            if now.base_digest is not None:
                needed.add(now.base_digest)
    return changed


def _is_no_base(base: bytes, chunk: bytes, changed: Mapping[bytes, NewChunk]) -> bool:
    """Whether it is the chunk itself, or has become a delta right now: deltas are one deep."""
    return base == chunk or (base in changed and changed[base].base_digest is not None)


def _recoded(
    store: WeightStore, chunk: StoredChunk, batch: _Batch, codec: str, base: Base | None
) -> NewChunk:
    raw = memoryview(bytearray(chunk.encoded.raw_bytes if chunk.encoded else 0))
    with naming(batch.tensor) if batch.tensor else naming_chunk(chunk.digest):
        decode_chunk(store, chunk, raw)
    assert chunk.encoded is not None
    assert chunk.encoded.body is not None
    if codec != KEEP:
        if base is None and codec == AUTO and chunk.base is not None:
            # The smallest may be the delta that it is.
            base = Base(digest=chunk.base.digest, raw=decode_base(store, chunk.base))
        return encode_chunk(store, chunk.digest, raw, dtype=batch.dtype, codec=codec, base=base)
    return NewChunk(
        digest=chunk.digest,
        raw_bytes=len(raw),
        codec=chunk.encoded.codec,
        codec_version=chunk.encoded.codec_version,
        body=chunk.encoded.body,
        base_digest=chunk.base.digest if chunk.base else None,
    )


def _differs(chunk: StoredChunk, now: NewChunk, place: OpenBodies | None) -> bool:
    assert chunk.encoded is not None
    base = chunk.base.digest if chunk.base else None
    here = (chunk.encoded.codec, chunk.encoded.codec_version, base, chunk.encoded.store_id)
    there = place.store_id if place else None
    return here != (now.codec, now.codec_version, now.base_digest, there)


def _stored_bytes(chunk: StoredChunk) -> int:
    return len(chunk.encoded.body) if chunk.encoded and chunk.encoded.body else 0


def _write(conn: Connection, changed: dict[bytes, NewChunk], place: OpenBodies | None) -> None:
    """Into the database first, and from there to the body store where there is one.

    A body store has one body of a digest. While it is written over, the row has the body itself:
    so whenever this stops, the row and the body it names belong together. What cannot be written
    any more, since others took it as a base or made its base a delta, is taken out of `changed`.
    """
    with conn.transaction():
        builds.as_step(conn)
        chunks.lock_chunks(conn, list(changed.values()))
        for digest in _overtaken(conn, changed):
            del changed[digest]
        there = [chunk for chunk in changed.values() if chunks.replace_chunk(conn, chunk)]
    if place is None or not there:
        return
    with conn.transaction():
        chunks.lock_bodies_shared(conn)
        chunks.lock_chunks(conn, there)
        for chunk in there:
            chunks.replace_chunk(conn, chunk, store_id=place.store_id)
        place.bodies.put({chunk.digest: chunk.body for chunk in there})


def _overtaken(conn: Connection, changed: Mapping[bytes, NewChunk]) -> set[bytes]:
    """Those that would make deltas two deep, now that nobody else can change them."""
    deltas = {d: c.base_digest for d, c in changed.items() if c.base_digest is not None}
    if not deltas:
        return set()
    needed = recoding.used_as_base(conn, list(deltas))
    plain = recoding.plain(conn, list(deltas.values()))
    return {digest for digest, base in deltas.items() if digest in needed or base not in plain}
