"""Filling pgvector with an embedding matrix, so that a search need not read all of it.

What is stored are unit vectors in half precision: a cosine asks for no more, and no value is then
beyond float16's range. They only propose: `nearest` ranks by the stored values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arc_halo.errors import RefusedError
from arc_halo.store import embeddings
from arc_halo.store.embeddings import EmbeddingMatrix
from arc_halo.weights.nearest import blocks, check_dtype
from arc_halo.weights.scoring import unit_rows
from arc_halo.weights.store import Advance, WeightStore, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_DIMENSION = 4000
"""The most that an HNSW index of half-precision vectors takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """An index: how many rows it holds, and whether it was made just now."""

    row_count: int
    is_new: bool


def index_matrix(
    store: WeightStore, matrix: EmbeddingMatrix, *, advance: Advance = no_progress
) -> Indexed:
    """Index a matrix by cosine, unless it is indexed, in one transaction.

    Rows without a direction (all zeros, or with a NaN or an infinity) are left out: under a
    cosine they match nothing. Every model that has this very matrix uses the index. Raises
    `RefusedError` beyond `MAX_DIMENSION`, `InvalidInputError` for a dtype without real numbers,
    `DatabaseError` where pgvector cannot be had.
    """
    if matrix.indexed_rows is not None:
        return Indexed(row_count=matrix.indexed_rows, is_new=False)
    check_dtype(matrix)
    if matrix.dimension > MAX_DIMENSION:
        raise RefusedError(
            f"the {matrix.kind} embedding of {matrix.model} has {matrix.dimension} dimensions, "
            f"pgvector indexes at most {MAX_DIMENSION}",
            hint="`embeddings nearest` searches it exactly, without an index",
            code="AH007",
        )
    with store.pool.connection() as conn:
        extension = embeddings.ensure_extension(conn)
        with conn.transaction():
            embeddings.drop_broken_index(conn, matrix.id)
            is_new = embeddings.create_index(
                conn,
                extension,
                tensor_id=matrix.id,
                dimension=matrix.dimension,
                rows=_batches(store, matrix, advance),
            )
        return Indexed(row_count=embeddings.indexed_rows(conn, matrix.id), is_new=is_new)


def _batches(
    store: WeightStore, matrix: EmbeddingMatrix, advance: Advance
) -> Iterator[tuple[int, bytes]]:
    for first, block in blocks(store, matrix):
        yield _batch(first, block)
        advance(block.nbytes)


def _batch(first: int, block: NDArray[Any]) -> tuple[int, bytes]:
    """The rows that have a direction, as PostgreSQL's binary COPY wants them.

    A row is a number of fields (2) and the fields, each after its length; a `halfvec` is its
    dimension, 16 bits unused, and its numbers, all big-endian (pgvector, `halfvec_recv`).
    """
    import numpy as np

    units = unit_rows(block)
    has_direction = np.isfinite(units).all(axis=1)
    dimension = block.shape[1]
    layout = np.dtype(
        [
            ("fields", ">i2"),
            ("number_bytes", ">i4"),
            ("number", ">i8"),
            ("vector_bytes", ">i4"),
            ("dimension", ">i2"),
            ("unused", ">i2"),
            ("vector", ">f2", (dimension,)),
        ]
    )
    batch = np.zeros(int(has_direction.sum()), layout)
    batch["fields"] = 2
    batch["number_bytes"] = 8
    batch["number"] = first + np.flatnonzero(has_direction)
    batch["vector_bytes"] = 4 + 2 * dimension
    batch["dimension"] = dimension
    batch["vector"] = units[has_direction]
    return len(batch), batch.tobytes()
