"""The rows of an embedding matrix that are nearest to one of them, or to a vector.

Exact search streams the matrix in bounded memory, and needs nothing of the server. Where pgvector
has an index of it (see `indexing`), the index proposes rows and their stored values rank them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex
from uuid import UUID

from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.names import did_you_mean
from arc_halo.store import embeddings
from arc_halo.store.embeddings import MAX_EF_SEARCH, EmbeddingMatrix
from arc_halo.store.rows import Connection
from arc_halo.tensors import dtypes
from arc_halo.weights.reading import read_pieces
from arc_halo.weights.rows import read_rows
from arc_halo.weights.scoring import METRICS, Neighbour, Ranking, unit_rows
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = ("token", "position", "segment")
BLOCK_BYTES = 1024 * 1024
"""Raw bytes ranked at once; wide, they take up to twelve times as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The nearest rows, the nearest first, and how they were found."""

    neighbours: list[Neighbour]
    method: Literal["exact", "hnsw"]


def find_matrix(conn: Connection, model_id: UUID, model: str, kind: str) -> EmbeddingMatrix:
    """The embedding matrix of a model.

    Raises `InvalidInputError` for a kind there is not, `NotFoundError` where the model has none.
    """
    if kind not in KINDS:
        raise InvalidInputError(
            f"{kind!r} is not a kind of embedding",
            hint=did_you_mean(kind, KINDS) or f"a kind is one of {', '.join(KINDS)}",
            code="AH006",
        )
    found = {matrix.kind: matrix for matrix in embeddings.matrices(conn, model_id)}
    if kind in found:
        return found[kind]
    if found:
        raise NotFoundError(
            f"{model} has no {kind} embedding", hint=f"it has these: {', '.join(found)}"
        )
    raise NotFoundError(
        f"{model} has no embedding matrix",
        hint="a model has some once it has weights, and is of a family whose tensors are known: "
        "`arc-halo embeddings ls` lists them",
    )


def nearest(
    store: WeightStore,
    matrix: EmbeddingMatrix,
    query: SupportsIndex | Iterable[float],
    *,
    k: int = 10,
    metric: str = "cosine",
    exact: bool = False,
) -> Answer:
    """The `k` rows of `matrix` nearest to its row `query`, or to a vector of its dimension.

    A row is not its own neighbour. Raises `InvalidInputError` for a row, vector, k or metric that
    may not be, and what reading tensors raises.
    """
    _check(matrix, k, metric)
    without = _as_row(matrix, query)
    vector = _row(store, matrix, without) if without is not None else _vector(matrix, query)
    _check_vector(vector, metric, "the vector" if without is None else f"{matrix.kind} {without}")
    if not exact and metric == "cosine" and matrix.indexed_rows is not None:
        found = _by_index(store, matrix, vector, k, without)
        if found is not None:
            return Answer(neighbours=found, method="hnsw")
    ranking = Ranking(vector, k=k, metric=metric, without=without)
    for first, block in blocks(store, matrix):
        ranking.add(_numbers(first, len(block)), block)
    return Answer(neighbours=ranking.neighbours(), method="exact")


def blocks(store: WeightStore, matrix: EmbeddingMatrix) -> Iterator[tuple[int, NDArray[Any]]]:
    """The rows in order, some at a time, each block with the number of its first.

    A block is valid until the next one is asked for.
    """
    row_bytes = matrix.size_bytes // matrix.rows
    buffer = memoryview(bytearray(max(1, BLOCK_BYTES // row_bytes) * row_bytes))
    first = filled = 0
    for piece in read_pieces(store, matrix, matrix.name):
        rest = piece
        while rest:
            taken = min(len(rest), len(buffer) - filled)
            buffer[filled : filled + taken] = rest[:taken]
            rest, filled = rest[taken:], filled + taken
            if filled == len(buffer):
                yield first, _as_block(matrix, buffer)
                first, filled = first + filled // row_bytes, 0
    if filled:
        yield first, _as_block(matrix, buffer[:filled])


def check_dtype(matrix: EmbeddingMatrix) -> None:
    """Raise `InvalidInputError` unless the matrix holds real numbers that numpy can hold."""
    dtype = dtypes.get_dtype(matrix.dtype)
    if not dtype.is_float or dtype.numpy_name is None:
        raise InvalidInputError(
            f"the {matrix.kind} embedding of {matrix.model} is {matrix.dtype}: "
            "such numbers are not compared",
            hint="quantised values mean nothing without their scales; store the embedding as "
            "F32, BF16 or F16",
            code="AH004",
        )


def _by_index(
    store: WeightStore,
    matrix: EmbeddingMatrix,
    vector: NDArray[np.float64],
    k: int,
    without: int | None,
) -> list[Neighbour] | None:
    """The neighbours among what the index proposes; None where it cannot answer."""
    import numpy as np

    candidates = 2 * k + 10
    if candidates >= MAX_EF_SEARCH or matrix.indexed_rows is None:
        return None
    with store.pool.connection() as conn:
        rows = embeddings.search(
            conn,
            tensor_id=matrix.id,
            dimension=matrix.dimension,
            vector=unit_rows(vector[None])[0].tolist(),
            limit=candidates,
            ef_search=max(100, 4 * k, candidates + 1),
            without=without,
        )
    expected = min(k, matrix.indexed_rows - (without is not None))
    if rows is None or len(rows) < expected:
        return None
    ranking = Ranking(vector, k=k, metric="cosine")
    rows.sort()
    ranking.add(np.array(rows, np.int64), read_rows(store, matrix, matrix.name, rows))
    return ranking.neighbours()


def _check(matrix: EmbeddingMatrix, k: int, metric: str) -> None:
    if metric not in METRICS:
        raise InvalidInputError(
            f"{metric!r} is not a metric",
            hint=did_you_mean(metric, METRICS) or f"a metric is one of {', '.join(METRICS)}",
            code="AH006",
        )
    if k < 1:
        raise InvalidInputError(f"k is {k}", hint="ask for one neighbour or more", code="AH007")
    check_dtype(matrix)


def _as_row(matrix: EmbeddingMatrix, query: SupportsIndex | Iterable[float]) -> int | None:
    if isinstance(query, bool) or not isinstance(query, SupportsIndex):
        return None
    try:
        row = operator.index(query)
    except TypeError:  # an array has the method, and only some arrays are an index
        return None
    if not 0 <= row < matrix.rows:
        raise InvalidInputError(
            f"{row} is not in the {matrix.kind} embedding of {matrix.model}",
            hint=f"its ids are 0 to {matrix.rows - 1}",
            code="AH007",
        )
    return row


def _row(store: WeightStore, matrix: EmbeddingMatrix, row: int) -> NDArray[np.float64]:
    import numpy as np

    found = read_rows(store, matrix, matrix.name, [row])
    vector: NDArray[np.float64] = found[0].astype(np.float64)
    return vector


def _vector(matrix: EmbeddingMatrix, query: SupportsIndex | Iterable[float]) -> NDArray[np.float64]:
    import numpy as np

    try:
        vector = np.asarray(query if isinstance(query, SupportsIndex) else list(query))
    except (TypeError, ValueError):
        vector = np.asarray(None)
    if vector.dtype.kind not in "iuf" and not dtypes.is_float(vector.dtype):
        raise InvalidInputError(
            f"{type(query).__name__} is neither an id nor a vector",
            hint=f"give an id, or {matrix.dimension} real numbers",
            code="AH004",
        )
    if vector.shape != (matrix.dimension,):
        raise InvalidInputError(
            f"the vector has the shape {list(vector.shape)}, a row of the {matrix.kind} "
            f"embedding of {matrix.model} has [{matrix.dimension}]",
            hint="give an id, or a vector of that many numbers",
            code="AH007",
        )
    return vector.astype(np.float64)


def _check_vector(vector: NDArray[np.float64], metric: str, what: str) -> None:
    import numpy as np

    if not np.isfinite(vector).all():
        raise InvalidInputError(
            f"{what} holds a NaN or an infinity: nothing is near to it",
            hint="`arc-halo tensors show MODEL TENSOR --stats` counts such values"
            if what != "the vector"
            else "give finite numbers",
            code="AH007",
        )
    if metric == "cosine" and not vector.any():
        raise InvalidInputError(
            f"{what} is all zeros: it has no direction, and nothing a cosine with it",
            hint="ask for the metric l2",
            code="AH007",
        )


def _as_block(matrix: EmbeddingMatrix, raw: memoryview) -> NDArray[Any]:
    row_bytes = matrix.size_bytes // matrix.rows
    return dtypes.view(raw, matrix.dtype, [len(raw) // row_bytes, matrix.dimension])


def _numbers(first: int, count: int) -> NDArray[np.int64]:
    import numpy as np

    return np.arange(first, first + count, dtype=np.int64)
