"""The strategy `karcher`: the mean of directions on the sphere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import number, schema, weight_sum
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import FloatArray, Scan

    Float64 = NDArray[np.float64]


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="karcher",
        version=1,
        summary="the Karcher mean of the members' directions, with their mean length",
        measure=measure,
        fuse_weights=karcher,
        part="elements",
        is_symmetric=True,
        params_schema=schema(
            max_iter={
                "type": "integer",
                "description": "The most steps.",
                "default": 10,
                "minimum": 1,
                "maximum": 10000,
            },
            tol=number("A step shorter than this is the last.", 1e-5, exclusiveMinimum=0),
        ),
    )


def measure(
    scan: Scan, context: FuseContext, *, max_iter: int = 10, tol: float = 1e-5
) -> list[float]:
    """What each member is multiplied by."""
    from arc_halo.strategies._spheres import lengths
    from arc_halo.strategies._sums import gram

    products = gram(scan, of_deltas=False)
    weights = np.array(context.weights)
    if not products.size:
        return list(map(float, weights))
    norms = lengths(products)
    used = np.flatnonzero((norms > 0) & (weights != 0))
    coefficients = np.zeros(len(weights))
    if not used.size:
        return list(map(float, coefficients))
    total = math.fsum(weights[used])
    if total == 0:
        weight_sum(context, "karcher")
    shares = weights[used] / total
    cosines = products[np.ix_(used, used)] / np.outer(norms[used], norms[used])
    mean = _mean(cosines, shares, max_iter, tol)
    coefficients[used] = mean / norms[used] * float(shares @ norms[used])
    return list(map(float, coefficients))


def karcher(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    max_iter: int = 10,
    tol: float = 1e-5,
) -> FloatArray:
    """m * sum of a_i |W_i|, m the mean of the directions W_i / |W_i| on the unit sphere.

    Found by steps along the weighted mean of the logarithms, from the mean in space. Members that
    are zero or have no weight are left out; a_i are the weights over their sum. In float64.

    H. Karcher, "Riemannian center of mass" (1977).
    """
    from arc_halo.strategies._sums import weighted_sum

    return weighted_sum(tensors, context.measured)


def _mean(cosines: Float64, shares: Float64, max_iter: int, tol: float) -> Float64:
    """The mean of unit vectors with these cosines, as the coefficients of a sum of them."""
    from arc_halo.strategies._spheres import length

    start = length(cosines, shares)
    mean = shares / start if start >= 1e-12 else np.eye(len(shares))[0]
    for _ in range(max_iter):
        towards = np.clip(cosines @ mean, -1, 1)
        sines = np.sqrt(1 - towards**2)
        is_away = sines >= 1e-12
        turns = np.where(is_away, np.arccos(towards) / np.where(is_away, sines, 1.0), 0.0)
        step = shares * turns - mean * float(shares @ (turns * towards))
        size = length(cosines, step)
        if size < tol:
            break
        mean = math.cos(size) * mean + math.sin(size) * step / size
        mean = mean / length(cosines, mean)
    return mean
