"""How far two stored tensors are apart, read part by part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arc_halo.tensors import dtypes
from arc_halo.weights.reading import TensorRow
from arc_halo.weights.spans import StoredTensor
from arc_halo.weights.store import Advance, WeightStore, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far two tensors of one kind are apart.

    `norm` is that of their difference, `relative` that over the norm of the first, `largest` its
    largest element, all over what is finite in both; what is not defined, or beyond float64, is
    None. `changed_share` is of the elements whose bits differ; `not_finite` are in the second.
    """

    norm: float | None
    relative: float | None
    largest: float | None
    changed_share: float
    not_finite: int


def is_measurable(first: TensorRow, second: TensorRow) -> bool:
    """Whether both are of one kind, have elements, and numpy can count with them."""
    return (
        (first.dtype, list(first.shape)) == (second.dtype, list(second.shape))
        and first.size_bytes > 0
        and dtypes.get_dtype(first.dtype).numpy_name is not None
    )


def measure(
    store: WeightStore,
    first: TensorRow,
    second: TensorRow,
    name: str,
    *,
    advance: Advance = no_progress,
) -> Distance:
    """The distance of two tensors for which `is_measurable`; `advance` is told the bytes of one."""
    import numpy as np

    sums, largest, changed, count, not_finite = np.zeros(2), 0.0, 0, 0, 0
    for one, two in _parts(store, first, second, name):
        changed += int(np.count_nonzero(_bits(one) != _bits(two)))
        count += one.size
        before, after = (_numbers(each) for each in (one, two))
        is_finite = np.isfinite(before) & np.isfinite(after)
        not_finite += int(np.count_nonzero(~np.isfinite(after)))
        with np.errstate(over="ignore", invalid="ignore"):
            change = np.subtract(after, before, where=is_finite, out=np.zeros_like(before))
            kept = np.where(is_finite, before, 0)
            sums += [np.add.reduce(change * change), np.add.reduce(kept * kept)]
            largest = max(largest, float(np.abs(change).max()))
        advance(one.nbytes)
    gap, square = map(float, sums)
    return Distance(
        norm=_finite(math.sqrt(gap)),
        relative=_finite(math.sqrt(gap / square)) if 0 < square < math.inf else None,
        largest=_finite(largest),
        changed_share=changed / count,
        not_finite=not_finite,
    )


def _parts(
    store: WeightStore, first: TensorRow, second: TensorRow, name: str
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Both sides, as elements, a window at a time; what is handed out is written over."""
    import numpy as np

    sides = [StoredTensor(store, tensor, name) for tensor in (first, second)]
    step = math.lcm(*(side.alignment for side in sides))
    # Beside the windows themselves there are float64 copies of them.
    window = min(max(step, store.memory_bytes // 64 // step * step), first.size_bytes)
    buffers = [np.empty(window, np.uint8) for _ in sides]
    dtype = dtypes.numpy_dtype(first.dtype)
    for offset in range(0, first.size_bytes, window):
        size = min(window, first.size_bytes - offset)
        for side, buffer in zip(sides, buffers, strict=True):
            side.read_into(offset, buffer[:size].data)
        one, two = (buffer[:size].view(dtype) for buffer in buffers)
        yield one, two


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    return array.view(f"u{array.itemsize}")


def _numbers(array: NDArray[Any]) -> NDArray[Any]:
    """As float64; complex ones as their two parts."""
    import numpy as np

    plain = array.view(np.float32) if array.dtype == np.complex64 else array
    return plain.astype(np.float64)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
