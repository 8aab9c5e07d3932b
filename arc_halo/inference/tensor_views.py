"""Keys and values of torch as arrays that are read where they are sliced, by whoever does that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.errors import InvalidInputError
from arc_halo.tensors.torch_tensors import as_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class TensorView:
    """The first row of tensors `[rows, heads, tokens, size]` one after another, without a copy:
    `[heads, tokens, size]`, of the tokens from `begin` to `end`.

    Nobody may write to the tensors from now on, which torch counts: what is read afterwards raises
    `InvalidInputError`. Of tensors made in inference mode it keeps no count.
    """

    ndim = 3

    def __init__(self, tensors: Sequence[Any], begin: int, end: int) -> None:
        self._chunks: list[_Chunk] = []
        at = -begin
        for tensor in tensors:
            count = tensor.shape[-2]
            if at < end - begin and at + count > 0:
                self._chunks.append(_Chunk(tensor, at))
            at += count
        heads, _, size = tensors[0].shape[1:]
        self.shape = (heads, end - begin, size)
        self.dtype = as_array(tensors[0][0, :, :0]).dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __getitem__(self, place: tuple[slice, slice]) -> Array:
        """A copy of some heads of some tokens."""
        heads, tokens = place
        first, last, _ = tokens.indices(self.shape[1])
        parts = [chunk.read(heads, first, last) for chunk in self._chunks]
        found = [part for part in parts if part.shape[1]]
        if not found:
            return np.empty(
                (len(range(*heads.indices(self.shape[0]))), 0, self.shape[2]), self.dtype
            )
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)


class _Chunk:
    """One of the tensors, whose first token is number `at`; of a batch it holds one row alone."""

    def __init__(self, tensor: Any, at: int) -> None:
        row = tensor[:1]
        if 2 * row.nbytes < tensor.untyped_storage().nbytes():
            row = row.clone()
        self._row, self._at = row, at
        self._writes = _writes(row)

    def read(self, heads: slice, first: int, last: int) -> Array:
        count = self._row.shape[-2]
        begin, end = (min(max(each - self._at, 0), count) for each in (first, last))
        found = as_array(self._row[0, heads, begin:end], copy=True)
        if _writes(self._row) != self._writes:
            raise InvalidInputError("keys and values were written over before they were stored")
        return found


def _writes(tensor: Any) -> int | None:
    return None if tensor.is_inference() else tensor._version
