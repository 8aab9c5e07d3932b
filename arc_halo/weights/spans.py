"""Any bytes of a stored tensor, read by whoever goes through it part by part."""

from __future__ import annotations

from contextlib import closing

from arc_halo.errors import MissingChunkError
from arc_halo.store import chunks, integrity
from arc_halo.tensors import digests
from arc_halo.weights.decoding import DAMAGED, decode_chunk, naming, with_bodies
from arc_halo.weights.reading import TensorRow, check_whole
from arc_halo.weights.store import WeightStore


class StoredTensor:
    """A tensor of the database. Its list of chunks is checked when it is opened.

    Every chunk read is held against its digest. Raises `CorruptChunkError` and
    `MissingChunkError`, both naming the tensor.
    """

    def __init__(self, store: WeightStore, tensor: TensorRow, name: str) -> None:
        self.dtype = tensor.dtype
        self.shape = tuple(tensor.shape)
        self.size_bytes = tensor.size_bytes
        self._store = store
        self._name = name
        self._chunk_bytes = tensor.chunk_bytes
        self._digests = _checked_digests(store, tensor, name)

    @property
    def alignment(self) -> int:
        """Spans that begin and end at its multiples read nothing twice."""
        return self._chunk_bytes

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the raw bytes from `offset` on."""
        if not out.nbytes:
            return
        first = offset // self._chunk_bytes
        last = (offset + out.nbytes - 1) // self._chunk_bytes
        wanted = self._digests[first : last + 1]
        with (
            self._store.pool.connection() as conn,
            closing(chunks.read_chunks_by_digest(conn, wanted)) as stream,
        ):
            for chunk in with_bodies(self._store, stream):
                start = (first + chunk.index) * self._chunk_bytes
                size = min(self._chunk_bytes, self.size_bytes - start)
                begin, end = max(start, offset), min(start + size, offset + out.nbytes)
                place = out[begin - offset : end - offset]
                whole = place if len(place) == size else memoryview(bytearray(size))
                with naming(self._name):
                    decode_chunk(self._store, chunk, whole)
                if whole is not place:
                    place[:] = whole[begin - start : end - start]


def _checked_digests(store: WeightStore, tensor: TensorRow, name: str) -> list[bytes]:
    with store.pool.connection() as conn:
        (listed,) = integrity.chunk_lists(conn, [tensor.id])
    for place, index in enumerate([*listed.indexes, tensor.chunk_count]):
        if place != index:
            raise MissingChunkError(f"tensor {name!r}: chunk {place} is missing", hint=DAMAGED)
    hasher = None
    if tensor.chunk_bytes == digests.LEAF_BYTES:
        hasher = digests.TensorHasher(tensor.dtype, tensor.shape)
        for digest in listed.digests:
            hasher.update_leaf(bytes(digest))
    check_whole(tensor, name, len(listed.digests), hasher)
    return [bytes(digest) for digest in listed.digests]
