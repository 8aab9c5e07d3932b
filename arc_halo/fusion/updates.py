"""Low-rank updates, added to a tensor part by part while it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from arc_halo.errors import NotFiniteError
from arc_halo.fusion.blocks import BLOCK_ITEMS, Span
from arc_halo.fusion.inputs import FloatParts
from arc_halo.fusion.tensor_recipes import LowRank

if TYPE_CHECKING:
    from arc_halo.types import FloatArray


class UpdatedInput:
    """One model's matrix with what adapters add to it, as floats, part after part.

    `factors` are pairs of [rows, rank] and [rank, columns], whose products are added up in float64
    and rounded once to the input's floats.
    """

    def __init__(
        self, tensor: FloatParts, factors: Sequence[tuple[FloatArray, FloatArray]], columns: int
    ) -> None:
        self._tensor = tensor
        self._factors = factors
        self._columns = columns

    def block(self, span: Span) -> FloatArray:
        """That part. Raises `NotFiniteError`."""
        import numpy as np

        values = self._tensor.block(span)
        total = np.array(values, np.float64).reshape(-1)
        step = max(1, BLOCK_ITEMS // self._columns) * self._columns
        start, end = span.start, span.start + span.count
        for first in range(start - start % self._columns, end, step):
            self._add(
                total, start, first, min(first + step, -(-end // self._columns) * self._columns)
            )
        updated = total.astype(values.dtype).reshape(span.shape)
        updated.setflags(write=False)
        return updated

    def end(self) -> None:
        """All of it was read once."""
        self._tensor.end()

    def _add(self, total: FloatArray, start: int, first: int, last: int) -> None:
        """Add what is between two flat indexes, which are those of whole rows."""
        rows = slice(first // self._columns, last // self._columns)
        begin, end = max(first, start), min(last, start + total.size)
        for left, right in self._factors:
            change = product(left[rows], right).reshape(-1)
            total[begin - start : end - start] += change[begin - first : end - first]


def factors(update: LowRank, a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """[rows, rank] and [rank, columns] of which the update is the product, in float64."""
    import numpy as np

    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise NotFiniteError(
            f"{update.a.model}: {update.a.tensor!r} holds NaN or infinity",
            hint="repair that adapter, or leave it out",
        )
    left, right = (a.T, b.T) if update.is_transposed else (b, a)
    return np.asarray(left, np.float64) * update.scale, np.asarray(right, np.float64)


def product(left: FloatArray, right: FloatArray) -> FloatArray:
    """Their product, added up rank by rank in float64: unlike BLAS, the same bits anywhere."""
    import numpy as np

    total = np.zeros((left.shape[0], right.shape[1]))
    term = np.empty_like(total)
    for rank in range(right.shape[0]):
        np.multiply(left[:, rank, None], right[rank], out=term)
        np.add(total, term, out=total)
    return total
