"""Reading some rows of a tensor: only the chunks they lie in."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from arc_halo.errors import InvalidInputError
from arc_halo.store import chunks
from arc_halo.tensors import digests, dtypes
from arc_halo.weights.decoding import decode_chunk, naming, with_bodies
from arc_halo.weights.reading import TensorRow, check_whole
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_rows(
    store: WeightStore, tensor: TensorRow, name: str, rows: Sequence[int]
) -> NDArray[Any]:
    """The rows `rows` of the first axis as a new array of shape [len(rows), *tensor.shape[1:]].

    `rows` must lie within the axis, and ascend or descend. The digest of every chunk read is
    verified, and, where the tensor is cut as its digest is, that the chunks are the tensor's.
    Raises what `read_array` raises, and `InvalidInputError` for a tensor without rows.
    """
    import numpy as np

    out = np.empty((len(rows), _row_bytes(tensor, name)), np.uint8)
    if out.size:
        does_descend = rows[0] > rows[-1]
        _read(store, tensor, name, rows[::-1] if does_descend else rows, out)
        out = np.ascontiguousarray(out[::-1]) if does_descend else out
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


def _read(
    store: WeightStore, tensor: TensorRow, name: str, rows: Sequence[int], out: NDArray[Any]
) -> None:
    needed = list(_chunks_of(tensor, rows, out.shape[1]))
    wanted = frozenset(needed)
    by_leaf = tensor.chunk_bytes == digests.LEAF_BYTES
    hasher = digests.TensorHasher(tensor.dtype, tensor.shape)
    count = 0
    with (
        store.pool.connection() as conn,
        closing(chunks.read_chunks(conn, tensor.id, needed)) as stream,
    ):
        scratch = memoryview(bytearray(min(tensor.chunk_bytes, tensor.size_bytes)))
        for chunk in with_bodies(store, stream):
            if chunk.index != count:
                break
            count += 1
            if by_leaf:
                hasher.update_leaf(chunk.digest)
            if chunk.index in wanted:
                start = chunk.index * tensor.chunk_bytes
                piece = scratch[: min(tensor.chunk_bytes, tensor.size_bytes - start)]
                with naming(name):
                    decode_chunk(store, chunk, piece)
                _copy(piece, start, rows, out)
    check_whole(tensor, name, count, hasher if by_leaf else None)


def _chunks_of(tensor: TensorRow, rows: Sequence[int], row_bytes: int) -> Iterator[int]:
    """The chunks that hold any byte of the ascending `rows`, each once, in order."""
    next_chunk = 0
    spans = ((rows[0], rows[-1]),) if _are_a_run(rows) else ((row, row) for row in rows)
    for low, high in spans:
        first = low * row_bytes // tensor.chunk_bytes
        last = ((high + 1) * row_bytes - 1) // tensor.chunk_bytes
        yield from range(max(first, next_chunk), last + 1)
        next_chunk = max(next_chunk, last + 1)


def _copy(piece: memoryview, start: int, rows: Sequence[int], out: NDArray[Any]) -> None:
    """Copy what `piece`, which begins at byte `start` of the tensor, has of `rows`."""
    import numpy as np

    raw, row_bytes = np.frombuffer(piece, np.uint8), out.shape[1]
    if _are_a_run(rows):
        _overlap(raw, start, out.reshape(-1), rows[0] * row_bytes)
        return
    for index in range(bisect_left(rows, start // row_bytes), len(rows)):
        if rows[index] * row_bytes >= start + raw.size:
            return
        _overlap(raw, start, out[index], rows[index] * row_bytes)


def _overlap(raw: NDArray[Any], start: int, out: NDArray[Any], begin: int) -> None:
    """Copy what two spans of bytes have in common, each given with where it begins."""
    low, high = max(start, begin), min(start + raw.size, begin + out.size)
    out[low - begin : high - begin] = raw[low - start : high - start]


def _are_a_run(rows: Sequence[int]) -> bool:
    return isinstance(rows, range) and rows.step == 1
