"""A stored tensor as a handle: its facts at once, its values when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any

from arc_halo.errors import InvalidInputError
from arc_halo.tensors.torch_tensors import as_torch
from arc_halo.weights.reading import TensorRow, read_array
from arc_halo.weights.rows import read_rows
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a model. Indexing reads only the rows that it needs.

    `tensor[10:20]` reads ten rows, `tensor[3]` one, `tensor[:, 0]` all; `numpy.asarray(tensor)`
    and `tensor.read()` read it whole. Every array is new, the caller's own, and of the stored
    dtype. All raise `CorruptChunkError` and `MissingChunkError`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    _row: TensorRow = field(repr=False)
    _store: WeightStore = field(repr=False)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"tensor {self.name!r} is a single number")
        return self.shape[0]

    def read(self, rows: slice | None = None) -> NDArray[Any]:
        """All of it, or the rows of a slice of the first axis."""
        if rows is None:
            return read_array(self._store, self._row, self.name)
        if not isinstance(rows, slice):
            raise InvalidInputError(
                f"tensor {self.name!r}: rows are a slice, not {rows!r}",
                hint="write slice(10, 20), or index the handle: `halo.tensors.open(…)[3]`",
            )
        return read_rows(self._store, self._row, self.name, self._rows(rows))

    def __getitem__(self, key: Any) -> NDArray[Any]:
        first: Any = key
        rest: tuple[Any, ...] = ()
        if isinstance(key, tuple) and key:
            first, *others = key
            rest = tuple(others)
        found: NDArray[Any]
        if self.shape and isinstance(first, slice):
            found = self.read(first)[(slice(None), *rest)]
        elif self.shape and _is_whole_number(first):
            found = self.read(self._one(index(first)))[(0, *rest)]
        else:
            found = self.read()[key]
        return found

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[position] for position in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"tensor {self.name!r} is in the database: an array is always a copy")
        array = self.read()
        return array if dtype is None else array.astype(dtype, copy=False)

    def torch(self, rows: slice | None = None) -> torch.Tensor:
        """The same as a torch tensor, which shares the new array's memory; bfloat16 too."""
        return as_torch(self.read(rows), self.dtype)

    def _rows(self, rows: slice) -> range:
        return range(*rows.indices(self.shape[0] if self.shape else 0))

    def _one(self, position: int) -> slice:
        size = self.shape[0]
        if not -size <= position < size:
            raise IndexError(f"tensor {self.name!r} has {size} rows, none at {position}")
        return slice(position % size, position % size + 1)


def _is_whole_number(key: object) -> bool:
    return hasattr(key, "__index__") and not isinstance(key, bool) and not getattr(key, "ndim", 0)
