"""Building weight sets: tensor by tensor, each committed by itself, resumed where it stopped."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from uuid import UUID

from arc_halo.errors import WeightsError
from arc_halo.store import builds, chunks, projects
from arc_halo.store.rows import Connection
from arc_halo.tensors import digests
from arc_halo.types import JsonObject, TensorInfo
from arc_halo.weights.store import Advance, Cancellation, WeightStore, no_progress

Produce = Callable[[TensorInfo], Iterable["bytes | memoryview"]]
"""Gives a tensor's raw bytes in order, in pieces of any size; called from several threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a build makes. Equal keys make equal weights, so the key alone decides what is redone.

    `expected` is the root that must come out, where it is known beforehand.
    """

    purpose: str
    key: bytes
    recipe: JsonObject
    project: str | None = None
    codec: str | None = None
    expected: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A finished build. `tensors_built` counts those made now, not those found done."""

    root: bytes
    tensor_count: int
    tensors_built: int
    size_bytes: int
    new_bytes: int
    stored_bytes: int


@dataclass(slots=True)
class _Totals:
    """Raw bytes of the chunks that were new, and the bytes of their bodies."""

    new_bytes: int = 0
    stored_bytes: int = 0


def build(
    store: WeightStore,
    recipe: Recipe,
    tensors: Sequence[TensorInfo],
    produce: Produce,
    *,
    advance: Advance = no_progress,
) -> Built:
    """Make the weight set of `recipe`, or find it made.

    Tensors that an earlier, interrupted run has finished are not produced again. Nothing points
    to the set when this returns. Raises what `produce` raises, and `WeightsError` when the
    result is not `recipe.expected`.
    """
    with store.pool.connection() as conn:
        known = builds.build_by_key(conn, recipe.key)
        if known is not None and known.root is not None:
            return _found(builds.sets_by_root(conn, [bytes(known.root)])[bytes(known.root)])
        build_id = _open(conn, recipe)
        done = {t.name for t in builds.built_tensors(conn, build_id)}
    for info in tensors:
        if info.name in done:
            advance(info.size_bytes)
    missing = [(i, info) for i, info in enumerate(tensors) if info.name not in done]
    totals = _Totals()
    _make_all(store, recipe, build_id, missing, produce, advance, totals)
    return _complete(store, recipe, build_id, len(missing), totals)


def _open(conn: Connection, recipe: Recipe) -> UUID:
    with conn.transaction():
        if recipe.project is not None:
            projects.ensure(conn, recipe.project)
        return builds.open_build(
            conn,
            project=recipe.project,
            purpose=recipe.purpose,
            recipe_key=recipe.key,
            recipe=recipe.recipe,
        )


def _make_all(
    store: WeightStore,
    recipe: Recipe,
    build_id: UUID,
    missing: Sequence[tuple[int, TensorInfo]],
    produce: Produce,
    advance: Advance,
    totals: _Totals,
) -> None:
    """Make each missing tensor, by `store.threads` threads with a connection each."""
    cancellation = Cancellation()

    def make(ordinal: int, info: TensorInfo) -> _Totals:
        writer = _TensorWriter(store, recipe.codec, info, advance, cancellation)
        writer.run(build_id, ordinal, produce(info))
        return writer.totals

    with ThreadPoolExecutor(store.threads, thread_name_prefix="arc-halo-build") as pool:
        futures = [pool.submit(make, ordinal, info) for ordinal, info in missing]
        try:
            parts = list(_results(futures))
        except BaseException:
            # Ctrl-C as well: running tensors stop at their next chunk, the others never start.
            cancellation.cancel()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for part in parts:
        totals.new_bytes += part.new_bytes
        totals.stored_bytes += part.stored_bytes


def _results(futures: Sequence[Future[_Totals]]) -> Iterator[_Totals]:
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        yield future.result()


def _complete(
    store: WeightStore, recipe: Recipe, build_id: UUID, built: int, totals: _Totals
) -> Built:
    """Close the build. What another program has finished meanwhile counts: equal keys, one set."""
    with store.pool.connection() as conn, conn.transaction():
        made = builds.lock(conn, build_id)
        if made is not None:
            return _found(made, built=built, totals=totals)
        # From the rows, not from what this program made: the two must never disagree.
        named = ((t.name, bytes(t.digest)) for t in builds.built_tensors(conn, build_id))
        root = digests.weights_root(named)
        if recipe.expected in (None, root):
            made = builds.complete(conn, build_id, root)
            return _found(made, built=built, totals=totals)
        builds.drop(conn, build_id)
    raise WeightsError(
        f"the weights came out as {digests.format_digest(root)}, "
        f"not as {digests.format_digest(recipe.expected or b'')}",
        hint="the source changed while it was read: plan again",
    )


def _found(found: builds.WeightSet, *, built: int = 0, totals: _Totals | None = None) -> Built:
    totals = totals or _Totals()
    return Built(
        root=bytes(found.root),
        tensor_count=found.tensor_count,
        tensors_built=built,
        size_bytes=found.size_bytes,
        new_bytes=totals.new_bytes,
        stored_bytes=totals.stored_bytes,
    )


class _TensorWriter:
    """Writes one tensor: chunks in batches, then the tensor's own rows in one transaction."""

    def __init__(
        self,
        store: WeightStore,
        codec: str | None,
        info: TensorInfo,
        advance: Advance,
        cancellation: Cancellation,
    ) -> None:
        self.totals = _Totals()
        self._store = store
        self._info = info
        self._codec = store.codec_for(info.dtype, codec)
        self._advance = advance
        self._cancellation = cancellation
        self._hasher = digests.TensorHasher(info.dtype, info.shape)
        self._digests: list[bytes] = []
        self._seen_bytes = 0

    def run(self, build_id: UUID, ordinal: int, pieces: Iterable[bytes | memoryview]) -> None:
        """Write the tensor and enter it in the build."""
        with self._store.pool.connection() as conn:
            for batch in self._batches(pieces):
                self._write_batch(conn, batch)
                self._advance(sum(len(raw) for raw in batch))
            self._check_size()
            digest = self._hasher.digest()
            with conn.transaction():
                builds.commit_asynchronously(conn)
                tensor_id = chunks.insert_tensor(
                    conn,
                    digest=digest,
                    dtype=self._info.dtype,
                    shape=self._info.shape,
                    element_count=math.prod(self._info.shape),
                    size_bytes=self._info.size_bytes,
                    chunk_bytes=self._store.chunk_bytes,
                    chunks=self._digests,
                )
                builds.add_tensor(
                    conn, build_id, name=self._info.name, ordinal=ordinal, tensor_id=tensor_id
                )

    def _check_size(self) -> None:
        if self._seen_bytes != self._info.size_bytes:
            raise WeightsError(
                f"tensor {self._info.name!r} came with {self._seen_bytes} bytes, "
                f"not {self._info.size_bytes}"
            )

    def _batches(self, pieces: Iterable[bytes | memoryview]) -> Iterator[list[bytes]]:
        batch: list[bytes] = []
        limit = max(1, self._store.batch_bytes // self._store.chunk_bytes)
        with closing(_cut(pieces, self._store.chunk_bytes)) as cut:
            for raw in cut:
                if self._cancellation.is_cancelled:
                    raise WeightsError("stopped")
                batch.append(raw)
                if len(batch) == limit:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _write_batch(self, conn: Connection, batch: Sequence[bytes]) -> None:
        self._seen_bytes += sum(map(len, batch))
        order = [hashlib.sha256(raw).digest() for raw in batch]
        named = dict(zip(order, batch, strict=True))
        for digest, raw in zip(order, batch, strict=True):
            self._digests.append(digest)
            if self._store.chunk_bytes == digests.LEAF_BYTES:
                self._hasher.update_leaf(digest)
            else:
                self._hasher.update(raw)
        there = chunks.existing(conn, list(named))
        new = [self._encode(d, raw) for d, raw in named.items() if d not in there]
        if new:
            with conn.transaction():
                builds.commit_asynchronously(conn)
                chunks.insert_chunks(conn, new)
            self.totals.new_bytes += sum(chunk.raw_bytes for chunk in new)
            self.totals.stored_bytes += sum(len(chunk.body) for chunk in new)

    def _encode(self, digest: bytes, raw: bytes) -> chunks.NewChunk:
        body = self._codec.encode(memoryview(raw), dtype=self._info.dtype)
        codec = self._codec
        if body is None or len(body) >= len(raw):
            body, codec = raw, self._store.find_codec("raw")
        return chunks.NewChunk(
            digest=digest,
            raw_bytes=len(raw),
            codec=codec.name,
            codec_version=codec.version,
            body=body,
        )


def _cut(pieces: Iterable[bytes | memoryview], chunk_bytes: int) -> Generator[bytes]:
    """The same bytes in chunks of `chunk_bytes`, the last one shorter; copies, safe to keep."""
    rest = b""
    for piece in pieces:
        view = memoryview(piece)
        while len(rest) + len(view) >= chunk_bytes:
            take = chunk_bytes - len(rest)
            yield b"".join((rest, view[:take])) if rest else bytes(view[:take])
            rest, view = b"", view[take:]
        if view:
            rest = b"".join((rest, view))
    if rest:
        yield rest
