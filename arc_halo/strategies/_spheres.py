"""Angles and means of directions, by the scalar products of vectors alone.

Every point that `karcher` and `multislerp` come to is a sum of the members' vectors. So one pass
for the products of every two is enough, and the vectors themselves are never turned.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64 = NDArray[np.float64]


def lengths(products: Float64) -> Float64:
    return np.asarray(np.sqrt(np.maximum(np.diagonal(products), 0)))


def length(products: Float64, coefficients: Float64) -> float:
    """The length of the sum of coefficient times vector."""
    # Not by BLAS, which adds up in an order of its own.
    terms = products * np.outer(coefficients, coefficients)
    return math.sqrt(max(0.0, math.fsum(terms.reshape(-1))))


def arc_shares(norms: Float64, gaps: Float64, t: float) -> tuple[Float64, Float64]:
    """What two vectors are multiplied by at `t` of the arc between them, for many pairs at once.

    `norms` are the lengths of the first and the second ones, `gaps` the squares of the lengths of
    difference and sum of their directions. The straight line where the sine of the angle is 1e-8
    or less, or a vector is zero.
    """
    angle = 2 * np.arctan2(np.sqrt(gaps[0]), np.sqrt(gaps[1]))
    sine = np.sin(angle)
    is_arc = (sine**2 > 1e-16) & (norms[0] > 0) & (norms[1] > 0)
    below = np.where(is_arc, sine, 1.0)
    first = np.where(is_arc, np.sin((1 - t) * angle) / below, 1 - t)
    second = np.where(is_arc, np.sin(t * angle) / below, t)
    return first, second
