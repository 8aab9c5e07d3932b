"""Reading tensors: streamed chunk by chunk into their place, every digest verified."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

from arc_halo.errors import CorruptChunkError, FormatError, MissingChunkError
from arc_halo.store import chunks
from arc_halo.store.chunks import StoredChunk
from arc_halo.tensors import digests, dtypes
from arc_halo.weights.decoding import DAMAGED, decode_chunk, naming, with_bodies
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIGNMENT = 64
"""Each tensor of an arena begins at a multiple of this, as vector instructions like it."""


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


class NamedRow(TensorRow, Protocol):
    """A tensor of a weight set."""

    @property
    def name(self) -> str: ...
    @property
    def ordinal(self) -> int: ...


def read_array(store: WeightStore, tensor: TensorRow, name: str) -> NDArray[Any]:
    """The tensor as a new array of its own dtype and shape.

    Raises `CorruptChunkError` or `MissingChunkError`, both naming the tensor.
    """
    import numpy as np

    raw = np.empty(tensor.size_bytes, dtype=np.uint8)
    with store.pool.connection() as conn, closing(chunks.read_chunks(conn, tensor.id)) as stream:
        _fill(store, stream, tensor, name, raw.data)
    return dtypes.view(raw, tensor.dtype, tensor.shape)


def read_arrays(
    store: WeightStore, weight_set_id: int, tensors: Sequence[NamedRow]
) -> dict[str, NDArray[Any]]:
    """All tensors of a set, in one stream and one allocation; each is a view of it.

    Raises what `read_array` raises, and `FormatError` for a tensor that no array can hold.
    """
    import numpy as np

    starts = _places(tensors)
    raw = np.empty(starts[-1], dtype=np.uint8)
    # First of all, that each can be an array: nothing is read in vain.
    found = {
        tensor.name: _view(tensor, raw[start : start + tensor.size_bytes])
        for tensor, start in zip(tensors, starts, strict=False)
    }
    with (
        store.pool.connection() as conn,
        closing(chunks.read_set_chunks(conn, weight_set_id)) as stream,
    ):
        owners = _ByOwner(stream)
        for tensor, start in zip(tensors, starts, strict=False):
            part = raw[start : start + tensor.size_bytes]
            _fill(store, owners.take(tensor.ordinal), tensor, tensor.name, part.data)
    return found


def _view(tensor: NamedRow, raw: NDArray[Any]) -> NDArray[Any]:
    try:
        return dtypes.view(raw, tensor.dtype, tensor.shape)
    except FormatError as exc:
        raise FormatError(f"tensor {tensor.name!r}: {exc.message}", hint=exc.hint) from exc


def read_pieces(store: WeightStore, tensor: TensorRow, name: str) -> Generator[memoryview]:
    """The tensor's raw bytes in order, one chunk at a time.

    Each piece is valid until the next one is asked for.
    """
    buffer = memoryview(bytearray(min(tensor.chunk_bytes, tensor.size_bytes)))
    with store.pool.connection() as conn, closing(chunks.read_chunks(conn, tensor.id)) as stream:
        yield from _decoded(store, stream, tensor, name, lambda start, size: buffer[:size])


def _fill(
    store: WeightStore,
    stream: Iterator[StoredChunk],
    tensor: TensorRow,
    name: str,
    out: memoryview,
) -> None:
    for _ in _decoded(store, stream, tensor, name, lambda start, size: out[start : start + size]):
        pass


def _decoded(
    store: WeightStore,
    stream: Iterator[StoredChunk],
    tensor: TensorRow,
    name: str,
    place: Callable[[int, int], memoryview],
) -> Iterator[memoryview]:
    """Decode each chunk where `place` says, given its start and size; then check the whole."""
    hasher = digests.TensorHasher(tensor.dtype, tensor.shape)
    by_leaf = tensor.chunk_bytes == digests.LEAF_BYTES
    expected = 0
    for chunk in with_bodies(store, stream):
        start = expected * tensor.chunk_bytes
        size = min(tensor.chunk_bytes, tensor.size_bytes - start)
        if chunk.index != expected or size <= 0:
            raise _missing(name, expected)
        out = place(start, size)
        with naming(name):
            decode_chunk(store, chunk, out)
        if by_leaf:
            hasher.update_leaf(chunk.digest)
        else:
            hasher.update(out)
        expected += 1
        yield out
    check_whole(tensor, name, expected, hasher)


def check_whole(
    tensor: TensorRow, name: str, chunk_count: int, hasher: digests.TensorHasher | None
) -> None:
    """Raise unless all chunks came and, where a hasher was fed, they add up to the digest."""
    if chunk_count != tensor.chunk_count:
        raise _missing(name, chunk_count)
    if hasher is not None and hasher.digest() != bytes(tensor.digest):
        raise CorruptChunkError(
            f"tensor {name!r}: its chunks do not add up to the digest it is named by",
            hint=DAMAGED,
        )


def _missing(name: str, index: int) -> MissingChunkError:
    return MissingChunkError(f"tensor {name!r}: chunk {index} is missing", hint=DAMAGED)


def _places(tensors: Sequence[NamedRow]) -> list[int]:
    """Where each tensor begins in the arena, and last of all the arena's size."""
    places = [0]
    for tensor in tensors:
        end = places[-1] + tensor.size_bytes
        places.append(-(-end // ALIGNMENT) * ALIGNMENT)
    return places


class _ByOwner:
    """A stream of chunks, taken owner by owner, the owners in order."""

    def __init__(self, stream: Iterator[StoredChunk]) -> None:
        self._stream = stream
        self._next: StoredChunk | None = next(stream, None)

    def take(self, owner: int) -> Iterator[StoredChunk]:
        while self._next is not None and self._next.owner == owner:
            chunk = self._next
            self._next = next(self._stream, None)
            yield chunk
