"""Weighted sums and scalar products of parts of tensors, with fixed bits.

The order of additions depends on nothing but the parts, whose size is fixed: not on threads, BLAS
or memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import Block, FloatArray, FuseContext, Scan

    Float64 = NDArray[np.float64]


def weighted_sum(tensors: Sequence[FloatArray], coefficients: Sequence[float]) -> FloatArray:
    """The sum of coefficient times tensor, added up in float64, in the first tensor's dtype.

    A coefficient of zero leaves its tensor out.
    """
    total: Float64 | None = None
    for values, coefficient in zip(tensors, coefficients, strict=True):
        if coefficient:
            term = values.astype(np.float64)
            np.multiply(term, coefficient, out=term)
            total = term if total is None else np.add(total, term, out=total)
    if total is None:
        return np.zeros(tensors[0].shape, tensors[0].dtype)
    return total.astype(tensors[0].dtype)


def added(
    tensors: Sequence[FloatArray], context: FuseContext, coefficients: Sequence[float]
) -> FloatArray:
    """The base plus the sum of coefficient times delta, in float64, rounded once."""
    assert context.base is not None
    total = context.base.astype(np.float64)
    for values, coefficient in zip(tensors, coefficients, strict=True):
        if coefficient:
            change = np.subtract(values, context.base, dtype=np.float64)
            np.multiply(change, coefficient, out=change)
            np.add(total, change, out=total)
    return total.astype(tensors[0].dtype)


def moved(context: FuseContext, change: FloatArray, scale: float = 1.0) -> FloatArray:
    """The base plus scale times the change, in the wider of their dtypes, then in the base's."""
    assert context.base is not None
    return np.asarray(np.add(context.base, change * scale), context.base.dtype)


def rounded(values: Float64, like: FloatArray) -> FloatArray:
    """The values in the dtype of a tensor they came from."""
    return values.astype(like.dtype)


def deltas(block: Block) -> list[FloatArray]:
    """What each member differs from the base by, in the members' dtype."""
    return differences(block.tensors, block.base)


def differences(tensors: Sequence[FloatArray], base: FloatArray | None) -> list[FloatArray]:
    assert base is not None
    return [np.subtract(tensor, base) for tensor in tensors]


def vectors(block: Block) -> list[FloatArray]:
    """The deltas where there is a base, else the tensors themselves."""
    return list(block.tensors) if block.base is None else deltas(block)


def scalar_product(a: FloatArray, b: FloatArray) -> float:
    """The sum of products of two parts of one shape, pairwise in their own dtype.

    A part is small enough that pairwise sums in float32 are good to some units in the last place;
    parts are added up in float64.
    """
    return float(np.add.reduce(np.multiply(a, b).reshape(-1)))


def gram(scan: Scan, *, of_deltas: bool = True) -> Float64:
    """The scalar products of every two members' vectors, as a symmetric matrix.

    Of the deltas where there is a base, unless it is to be left out.
    """
    total: Float64 | None = None
    for block in scan():
        parts = vectors(block) if of_deltas else list(block.tensors)
        if total is None:
            total = np.zeros((len(parts), len(parts)))
        for i, one in enumerate(parts):
            for j in range(i, len(parts)):
                total[i, j] += scalar_product(one, parts[j])
                total[j, i] = total[i, j]
    return np.zeros((0, 0)) if total is None else total
