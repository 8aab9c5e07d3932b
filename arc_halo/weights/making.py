"""Making a tensor of bytes that come in pieces: cut, digested, its chunks stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

from arc_halo.errors import WeightsError
from arc_halo.store.tensors import NewTensor
from arc_halo.tensors import digests
from arc_halo.types import TensorInfo
from arc_halo.weights.store import Advance, WeightStore
from arc_halo.weights.threads import Cancellation
from arc_halo.weights.writing import ChunkWriter, Cut, cut

Produce = Callable[[TensorInfo], Iterable["bytes | memoryview"]]
"""Gives a tensor's raw bytes in order, in pieces of any size; called from several threads."""


class TensorMaker:
    """Makes tensors of what is produced for them: stores their chunks, in batches."""

    def __init__(
        self,
        store: WeightStore,
        writer: ChunkWriter,
        produce: Produce,
        advance: Advance,
        cancellation: Cancellation,
    ) -> None:
        self._store = store
        self._writer = writer
        self._produce = produce
        self._advance = advance
        self._cancellation = cancellation
        self._batch_bytes = store.batch_bytes
        self._batch: list[Cut] = []
        self._batched_bytes = 0

    def make(self, info: TensorInfo) -> NewTensor:
        """The tensor that is produced. Its last chunks are stored by `flush`, its row by nobody."""
        hasher = digests.TensorHasher(info.dtype, info.shape)
        by_leaf = self._store.chunk_bytes == digests.LEAF_BYTES
        listed: list[bytes] = []
        seen_bytes = 0
        for raw in self._chunks(info):
            item = cut(info, len(listed), raw)
            listed.append(item.digest)
            seen_bytes += len(raw)
            if seen_bytes > info.size_bytes:
                break
            if by_leaf:
                hasher.update_leaf(item.digest)
            else:
                hasher.update(raw)
            self._add(item)
        if seen_bytes != info.size_bytes:
            raise WeightsError(
                f"tensor {info.name!r} came with {seen_bytes} bytes, not {info.size_bytes}"
            )
        return NewTensor(
            digest=hasher.digest(),
            dtype=info.dtype,
            shape=info.shape,
            element_count=math.prod(info.shape),
            size_bytes=info.size_bytes,
            chunk_bytes=self._store.chunk_bytes,
            chunks=listed,
        )

    def _chunks(self, info: TensorInfo) -> Iterator[bytes | memoryview]:
        """The tensor cut in chunks. What is borrowed is written before the next piece is read."""
        size = self._store.chunk_bytes
        if info.size_bytes < size:
            if raw := b"".join(self._produce(info)):
                yield raw
            return
        with closing(_closable(self._produce(info))) as pieces:
            rest = b""
            for piece in pieces:
                view = memoryview(piece)
                is_borrowed = view.nbytes >= self._batch_bytes // 2 and not rest
                while len(rest) + len(view) >= size:
                    take = size - len(rest)
                    part = view[:take] if is_borrowed else b"".join((rest, view[:take]))
                    yield part
                    rest, view = b"", view[take:]
                if is_borrowed:
                    self.flush()
                rest = b"".join((rest, view))
            if rest:
                yield rest

    def _add(self, item: Cut) -> None:
        self._cancellation.check()
        self._batch.append(item)
        self._batched_bytes += len(item.raw)
        if self._batched_bytes >= self._batch_bytes:
            self.flush()

    def flush(self) -> None:
        """Store what is left of the batch."""
        if self._batch:
            self._writer.write(self._batch)
            self._advance(self._batched_bytes)
            self._batch, self._batched_bytes = [], 0


def _closable(pieces: Iterable[bytes | memoryview]) -> Generator[bytes | memoryview]:
    """A generator of what may be a list, so that it can be closed."""
    yield from pieces
