"""Reading tensors: streamed chunk by chunk, every digest verified."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from arc_halo.errors import CodecError, CorruptChunkError, MissingChunkError
from arc_halo.store import chunks
from arc_halo.store.rows import Connection
from arc_halo.tensors import digests, dtypes
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray


DAMAGED = "the database was damaged behind our back: restore it from a backup"


class TensorRow(Protocol):
    """What reading needs to know of a stored tensor."""

    @property
    def id(self) -> int: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> list[int]: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def chunk_bytes(self) -> int: ...
    @property
    def chunk_count(self) -> int: ...


def read_array(store: WeightStore, tensor: TensorRow, name: str) -> NDArray[Any]:
    """The tensor as a new array of its own dtype and shape.

    Raises `CorruptChunkError` or `MissingChunkError`, both naming the tensor.
    """
    import numpy as np

    raw = np.empty(tensor.size_bytes, dtype=np.uint8)
    arena = raw.data
    with store.pool.connection() as conn:
        for _ in _chunks_into(store, conn, tensor, name, arena):
            pass
    return dtypes.view(raw, tensor.dtype, tensor.shape)


def read_pieces(store: WeightStore, tensor: TensorRow, name: str) -> Iterator[memoryview]:
    """The tensor's raw bytes in order, one chunk at a time.

    Each piece is valid until the next one is asked for.
    """
    with store.pool.connection() as conn:
        yield from _chunks_into(store, conn, tensor, name, None)


def _chunks_into(
    store: WeightStore, conn: Connection, tensor: TensorRow, name: str, arena: memoryview | None
) -> Iterator[memoryview]:
    """Decode and verify each chunk, into its place in `arena` or into one buffer used again."""
    buffer = memoryview(bytearray(min(tensor.chunk_bytes, tensor.size_bytes)))
    hasher = digests.TensorHasher(tensor.dtype, tensor.shape)
    expected = 0
    for chunk in chunks.read_chunks(conn, tensor.id):
        start = expected * tensor.chunk_bytes
        length = min(tensor.chunk_bytes, tensor.size_bytes - start)
        if chunk.chunk_index != expected or length <= 0:
            raise _missing(name, expected)
        out = buffer[:length] if arena is None else arena[start : start + length]
        _decode(store, chunk, out, name)
        if tensor.chunk_bytes == digests.LEAF_BYTES:
            hasher.update_leaf(chunk.chunk_digest)
        else:
            hasher.update(out)
        expected += 1
        yield out
    if expected != tensor.chunk_count:
        raise _missing(name, expected)
    if hasher.digest() != bytes(tensor.digest):
        raise CorruptChunkError(
            f"tensor {name!r}: its chunks do not add up to the digest it is named by",
            hint=DAMAGED,
        )


def _decode(store: WeightStore, chunk: chunks.StoredChunk, out: memoryview, name: str) -> None:
    if chunk.body is None or chunk.codec is None:
        raise _missing(name, chunk.chunk_index)
    try:
        if chunk.raw_bytes != len(out):
            raise CodecError(f"it holds {chunk.raw_bytes} bytes, not {len(out)}")
        codec = store.find_codec(chunk.codec)
        if chunk.codec_version is not None and chunk.codec_version > codec.version:
            raise CodecError(
                f"it was written by version {chunk.codec_version} of the codec {codec.name}, "
                f"version {codec.version} is loaded"
            )
        codec.decode(memoryview(chunk.body), out)
    except CodecError as exc:
        raise CorruptChunkError(
            f"tensor {name!r}: chunk {chunk.chunk_index} cannot be decoded: {exc}",
            hint=DAMAGED,
        ) from exc
    if hashlib.sha256(out).digest() != chunk.chunk_digest:
        raise CorruptChunkError(
            f"tensor {name!r}: chunk {chunk.chunk_index} does not have the digest "
            f"{chunk.chunk_digest.hex()[:16]}… it is named by",
            hint=DAMAGED,
        )


def _missing(name: str, index: int) -> MissingChunkError:
    return MissingChunkError(
        f"tensor {name!r}: chunk {index} is missing",
        hint=DAMAGED,
    )
