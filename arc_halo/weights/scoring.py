"""How near rows are to a vector, and which are nearest: block by block, in float64.

Equal rows get equal scores wherever they stand, which a BLAS does not promise: products are
summed row by row, in an order that depends on nothing but the row's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

METRICS = ("cosine", "l2", "ip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A row near to a vector.

    `score` is the cosine similarity or the inner product, where larger is nearer; or the
    Euclidean distance (`l2`), where smaller is.
    """

    token_id: int
    score: float


class Ranking:
    """The `k` rows nearest to `query` among those added; equal ones by their number.

    A row whose score is no finite number never counts: it holds a NaN or an infinity, or is all
    zeros where the metric is cosine.
    """

    def __init__(self, query: Vector, *, k: int, metric: str, without: int | None = None) -> None:
        import numpy as np

        self._query = query
        self._k = k
        self._metric = metric
        self._without = without
        self._rows = np.empty(0, np.int64)
        self._keys = np.empty(0, np.float64)

    def add(self, rows: NDArray[np.int64], block: NDArray[Any]) -> None:
        """Rank `block` [n, dimension], whose rows are the numbers `rows` [n]."""
        import numpy as np

        keys = _keys(block, self._query, self._metric)
        near = np.isfinite(keys)
        if self._keys.size == self._k:
            near &= keys <= self._keys[-1]
        if self._without is not None:
            near &= rows != self._without
        if not near.any():
            return
        rows = np.concatenate((self._rows, rows[near]))
        keys = np.concatenate((self._keys, keys[near]))
        order = np.lexsort((rows, keys))[: self._k]
        self._rows, self._keys = rows[order], keys[order]

    def neighbours(self) -> list[Neighbour]:
        """The nearest first."""
        scores = self._keys if self._metric == "l2" else 0.0 - self._keys
        return [
            Neighbour(token_id=row, score=score)
            for row, score in zip(self._rows.tolist(), scores.tolist(), strict=True)
        ]


def unit_rows(block: NDArray[Any]) -> NDArray[np.float64]:
    """The rows of `block`, each divided by its length; one without a direction becomes NaN."""
    import numpy as np

    wide = _scaled(block)
    with np.errstate(all="ignore"):
        return wide / np.sqrt(_sums(wide * wide))[:, None]


def _keys(block: NDArray[Any], query: Vector, metric: str) -> Vector:
    """Smaller is nearer, whatever the metric."""
    import numpy as np

    with np.errstate(all="ignore"):
        if metric == "l2":
            wide = block.astype(np.float64)
            wide -= query
            return np.sqrt(_sums(np.square(wide, out=wide)))
        if metric == "ip":
            return -_sums(block.astype(np.float64) * query)
        wide = _scaled(block)
        products = wide * _scaled(query[None])[0]
        dots = _sums(products)
        lengths = np.sqrt(_sums(np.multiply(wide, wide, out=products)))
        lengths *= np.sqrt(_sums(np.square(_scaled(query[None]))))
        # To float32, so that rows of one direction and different lengths are equal.
        cosines = np.clip(dots / lengths, -1, 1).astype(np.float32)
        return -cosines.astype(np.float64)


def _sums(products: NDArray[np.float64]) -> Vector:
    import numpy as np

    sums: Vector = np.add.reduce(products, axis=1)
    return sums


def _scaled(block: NDArray[Any]) -> NDArray[np.float64]:
    """In float64; rows that were wide before by a power of two, so that squares stay in range."""
    import numpy as np

    wide: NDArray[np.float64] = block.astype(np.float64)
    if block.dtype.itemsize < wide.dtype.itemsize:
        return wide
    _, exponents = np.frexp(np.abs(wide).max(axis=1))
    powers = np.ldexp(np.float64(1), -np.clip(exponents, -1000, 1000))
    wide *= powers[:, None]
    return wide
