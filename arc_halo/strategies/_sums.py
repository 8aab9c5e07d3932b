"""Weighted sums and scalar products of parts of tensors, with fixed bits.

The order of additions depends on nothing but the parts, whose size is fixed: not on threads, BLAS
or memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import Block, FloatArray, FuseContext, Scan

    Float64 = NDArray[np.float64]


MOST_CANCELLED = 16
"""How much larger than the sum of coefficients that of their magnitudes may be in float32."""


def sum_dtype(
    context: FuseContext, coefficients: Sequence[float], total: float
) -> type[np.floating[Any]]:
    """What to add up in: float32 where that is far more than the result is rounded to.

    That is so for BF16, unless terms cancel out: `total` is what all coefficients add up to.
    """
    spread = sum(map(abs, coefficients))
    is_enough = context.dtype == "BF16" and spread <= MOST_CANCELLED * abs(total) <= 2.0**64
    return np.float32 if is_enough else np.float64


def weighted_sum(
    tensors: Sequence[FloatArray],
    coefficients: Sequence[float],
    dtype: type[np.floating[Any]] = np.float64,
) -> FloatArray:
    """The sum of coefficient times tensor, added up in `dtype`, in the first tensor's dtype.

    A coefficient of zero leaves its tensor out. Wide tensors are added up in float64 in any case.
    """
    dtype = np.promote_types(dtype, tensors[0].dtype).type
    total: FloatArray | None = None
    for values, coefficient in zip(tensors, coefficients, strict=True):
        if coefficient:
            # Widened first: numpy is slow where it has to convert while it multiplies.
            term = np.multiply(values.astype(dtype, copy=False), coefficient)
            total = term if total is None else np.add(total, term, out=total)
    if total is None:
        return np.zeros(tensors[0].shape, tensors[0].dtype)
    return total.astype(tensors[0].dtype, copy=False)


def added(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    coefficients: Sequence[float],
    dtype: type[np.floating[Any]] = np.float64,
) -> FloatArray:
    """The base plus the sum of coefficient times delta, in `dtype`, rounded once."""
    assert context.base is not None
    dtype = np.promote_types(dtype, tensors[0].dtype).type
    base = context.base.astype(dtype, copy=False)
    total: FloatArray | None = None
    for values, coefficient in zip(tensors, coefficients, strict=True):
        if coefficient:
            change = np.subtract(values.astype(dtype, copy=False), base)
            np.multiply(change, coefficient, out=change)
            total = np.add(base if total is None else total, change, out=change)
    return (base if total is None else total).astype(tensors[0].dtype, copy=False)


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
