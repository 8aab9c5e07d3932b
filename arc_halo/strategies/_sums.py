"""Weighted sums and scalar products of large tensors, a block at a time and with fixed bits.

The order of additions depends on nothing but the arrays' length: not on threads, BLAS or memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from arc_halo.types import FloatArray

BLOCK_ITEMS = 32768


def weighted_sum(tensors: Sequence[FloatArray], coefficients: Sequence[float]) -> FloatArray:
    """The sum of coefficient times tensor, added up in float64, in the first tensor's dtype.

    A coefficient of zero leaves its tensor out, so a NaN in it does not spread.
    """
    terms = [(x.reshape(-1), c) for x, c in zip(tensors, coefficients, strict=True) if c]
    result = np.zeros(tensors[0].shape, tensors[0].dtype)
    flat = result.reshape(-1)
    total, term = np.empty((2, BLOCK_ITEMS))
    with np.errstate(over="ignore", invalid="ignore"):
        for block in _blocks(flat.size if terms else 0):
            size = block.stop - block.start
            np.multiply(terms[0][0][block], terms[0][1], out=total[:size], dtype=np.float64)
            for values, coefficient in terms[1:]:
                np.multiply(values[block], coefficient, out=term[:size], dtype=np.float64)
                np.add(total[:size], term[:size], out=total[:size])
            flat[block] = total[:size]
    return result


def scalar_product(a: FloatArray, b: FloatArray) -> float:
    """The sum of products of two arrays of one shape, in float64."""
    left, right = a.reshape(-1), b.reshape(-1)
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for block in _blocks(left.size):
            products = np.multiply(left[block], right[block], dtype=np.float64)
            total += float(np.add.reduce(products))
    return total


def _blocks(size: int) -> Iterator[slice]:
    return (slice(i, min(i + BLOCK_ITEMS, size)) for i in range(0, size, BLOCK_ITEMS))
