"""`halo.embeddings`: rows of embedding matrices, and which are near."""

from __future__ import annotations

from collections.abc import Iterable
from typing import SupportsIndex

from arc_halo.api._finding import GivenModel, find_model
from arc_halo.project import Project
from arc_halo.store import embeddings
from arc_halo.store.embeddings import EmbeddingMatrix
from arc_halo.weights.indexing import index_matrix
from arc_halo.weights.nearest import find_matrix, nearest
from arc_halo.weights.scoring import Neighbour


class Embeddings:
    """Embedding matrices, searched row by row; in any database, without an extension too."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def nearest(
        self,
        model: GivenModel,
        query: SupportsIndex | Iterable[float],
        *,
        k: int = 10,
        metric: str = "cosine",
        kind: str = "token",
        exact: bool = False,
    ) -> list[Neighbour]:
        """The `k` rows nearest to the row `query`, or to a vector; the nearest first.

        `metric` is cosine, l2 or ip. A row is not its own neighbour, and one that holds a NaN is
        nobody's. Raises `NotFoundError`, `InvalidInputError`.
        """
        matrix = self._matrix(model, kind)
        return nearest(
            self._project.weights, matrix, query, k=k, metric=metric, exact=exact
        ).neighbours

    def index(self, model: GivenModel, *, kind: str = "token") -> int:
        """Index an embedding with pgvector, unless it is; how many rows are indexed.

        Raises `DatabaseError` where pgvector cannot be had, `RefusedError` for a matrix that is
        too wide for it.
        """
        return index_matrix(self._project.weights, self._matrix(model, kind)).row_count

    def drop_index(self, model: GivenModel, *, kind: str = "token") -> bool:
        """Drop the index, for every model that shares the matrix; False when there was none."""
        matrix = self._matrix(model, kind)
        with self._project.connection() as conn:
            return embeddings.drop_index(conn, matrix.id)

    def _matrix(self, model: GivenModel, kind: str) -> EmbeddingMatrix:
        with self._project.connection() as conn:
            record = find_model(conn, model)
            return find_matrix(conn, record.id, record.full_name, kind)

    def list(self, model: GivenModel | None = None) -> list[EmbeddingMatrix]:
        """The embedding matrices of all models, or of one."""
        with self._project.connection() as conn:
            return embeddings.matrices(conn, None if model is None else find_model(conn, model).id)
