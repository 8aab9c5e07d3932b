"""Reading rows that lie anywhere in a matrix: only the chunks they lie in, in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from arc_halo.store import chunks
from arc_halo.tensors import digests, dtypes
from arc_halo.weights.decoding import decode_chunk, with_bodies
from arc_halo.weights.reading import TensorRow, check_whole, naming
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_scattered_rows(
    store: WeightStore, tensor: TensorRow, name: str, rows: Sequence[int]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Each of the ascending, different `rows` of a matrix, as an array of shape [1, dimension].

    A row's elements must fill bytes. Verifies and raises what `rows.read_rows` does; whether the
    chunks add up to the tensor is known only once the last row was asked for.
    """
    row_bytes = tensor.size_bytes // tensor.shape[0]
    parts = {row: bytearray(row_bytes) for row in rows}
    wanted = sorted({chunk for row in rows for chunk in _chunks_of(tensor, row, row_bytes)})
    waiting = list(reversed(rows))
    by_leaf = tensor.chunk_bytes == digests.LEAF_BYTES
    hasher = digests.TensorHasher(tensor.dtype, tensor.shape)
    needed, count = set(wanted), 0
    scratch = memoryview(bytearray(min(tensor.chunk_bytes, tensor.size_bytes)))
    with (
        store.pool.connection() as conn,
        closing(chunks.read_chunks(conn, tensor.id, wanted)) as stream,
    ):
        for chunk in with_bodies(store, stream):
            if by_leaf and chunk.index == count:
                hasher.update_leaf(chunk.digest)
            count += 1
            if chunk.index not in needed:
                continue
            needed.discard(chunk.index)
            start = chunk.index * tensor.chunk_bytes
            piece = scratch[: min(tensor.chunk_bytes, tensor.size_bytes - start)]
            with naming(name):
                decode_chunk(store, chunk, piece)
            end = start + len(piece)
            for row in reversed(waiting):
                if row * row_bytes >= end:
                    break
                _copy(piece, start, parts[row], row * row_bytes)
            while waiting and (waiting[-1] + 1) * row_bytes <= end:
                row = waiting.pop()
                yield row, dtypes.view(parts.pop(row), tensor.dtype, [1, *tensor.shape[1:]])
    if by_leaf or count != tensor.chunk_count:
        check_whole(tensor, name, count, hasher)


def _chunks_of(tensor: TensorRow, row: int, row_bytes: int) -> range:
    first, end = row * row_bytes, (row + 1) * row_bytes
    return range(first // tensor.chunk_bytes, (end - 1) // tensor.chunk_bytes + 1)


def _copy(piece: memoryview, start: int, row: bytearray, begin: int) -> None:
    """Copy what `piece`, which begins at byte `start`, has of the row that begins at `begin`."""
    low, high = max(start, begin), min(start + len(piece), begin + len(row))
    row[low - begin : high - begin] = piece[low - start : high - start]
