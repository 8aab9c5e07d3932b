"""Reading some rows of a tensor: only the chunks they lie in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from arc_halo.errors import InvalidInputError
from arc_halo.store import chunks
from arc_halo.tensors import digests, dtypes
from arc_halo.weights.decoding import decode_chunk, with_bodies
from arc_halo.weights.reading import TensorRow, check_whole, naming
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_rows(store: WeightStore, tensor: TensorRow, name: str, rows: range) -> NDArray[Any]:
    """The rows `rows` of the first axis, in their order, as a new array.

    The digest of every chunk read is verified, and, where the tensor is cut as its digest is,
    that the chunks are the tensor's. `rows` must lie within the axis. Raises what `read_array`
    raises, and `InvalidInputError` for a tensor without rows.
    """
    import numpy as np

    row_bytes = _row_bytes(tensor, name)
    out = np.empty((len(rows), row_bytes), np.uint8)
    ascending = rows if rows.step > 0 else rows[::-1]
    if out.size:
        _read(store, tensor, name, ascending, out)
    if rows.step < 0:
        out = np.ascontiguousarray(out[::-1])
    return dtypes.view(out.reshape(-1), tensor.dtype, [len(rows), *tensor.shape[1:]])


def _row_bytes(tensor: TensorRow, name: str) -> int:
    if not tensor.shape:
        raise InvalidInputError(
            f"tensor {name!r} is a single number: it has no rows", hint="read it whole"
        )
    bits = dtypes.get_dtype(tensor.dtype).item_bits
    for dim in tensor.shape[1:]:
        bits *= dim
    if bits % 8:
        raise InvalidInputError(
            f"the rows of tensor {name!r} do not fill bytes", hint="read it whole"
        )
    return bits // 8


def _read(store: WeightStore, tensor: TensorRow, name: str, rows: range, out: NDArray[Any]) -> None:
    wanted = list(_chunks_of(tensor, rows, out.shape[1]))
    by_leaf = tensor.chunk_bytes == digests.LEAF_BYTES
    hasher = digests.TensorHasher(tensor.dtype, tensor.shape)
    count = 0
    with (
        store.pool.connection() as conn,
        closing(chunks.read_chunks(conn, tensor.id, wanted)) as stream,
    ):
        needed = set(wanted)
        scratch = memoryview(bytearray(min(tensor.chunk_bytes, tensor.size_bytes)))
        for chunk in with_bodies(store, stream):
            if by_leaf and chunk.index == count:
                hasher.update_leaf(chunk.digest)
            count += 1
            if chunk.index in needed:
                needed.discard(chunk.index)
                start = chunk.index * tensor.chunk_bytes
                piece = scratch[: min(tensor.chunk_bytes, tensor.size_bytes - start)]
                with naming(name):
                    decode_chunk(store, chunk, piece)
                _copy(piece, start, rows, out)
    if by_leaf or count != tensor.chunk_count:
        check_whole(tensor, name, count, hasher)


def _chunks_of(tensor: TensorRow, rows: range, row_bytes: int) -> Iterator[int]:
    """The chunks that hold any byte of the ascending `rows`, each once, in order."""
    next_chunk = 0
    for row in (rows[0],) if rows.step == 1 else rows:
        first = row * row_bytes // tensor.chunk_bytes
        end = (rows[-1] if rows.step == 1 else row) + 1
        last = (end * row_bytes - 1) // tensor.chunk_bytes
        yield from range(max(first, next_chunk), last + 1)
        next_chunk = max(next_chunk, last + 1)


def _copy(piece: memoryview, start: int, rows: range, out: NDArray[Any]) -> None:
    """Copy what `piece`, which begins at byte `start` of the tensor, has of `rows`."""
    import numpy as np

    raw = np.frombuffer(piece, np.uint8)
    row_bytes = out.shape[1]
    if rows.step == 1:
        flat, begin = out.reshape(-1), rows[0] * row_bytes
        low, high = max(start, begin), min(start + raw.size, begin + flat.size)
        flat[low - begin : high - begin] = raw[low - start : high - start]
        return
    first = max(0, -(-(start - row_bytes + 1) // row_bytes) - rows.start)
    for index in range(-(-first // rows.step), len(rows)):
        begin = rows[index] * row_bytes
        if begin >= start + raw.size:
            return
        low, high = max(start, begin), min(start + raw.size, begin + row_bytes)
        out[index, low - begin : high - begin] = raw[low - start : high - start]
