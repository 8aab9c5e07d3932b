"""The fusion strategy `geometric_median`: the point whose distances to the members add up to least.

A member that is far from all others hardly moves it, as a median, but it treats a tensor as one
vector: it is a weighted mean of the members, the far ones weighing less.

E. Weiszfeld, "Sur le point pour lequel la somme des distances de n points donnés est minimum"
(1937); K. Pillutla, S. Kakade, Z. Harchaoui, "Robust aggregation for federated learning" (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arc_halo import FuseContext, FusionStrategy, hookimpl

Array = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="geometric_median",
        version=1,
        summary="the point of least total distance to the members",
        # One pass over the whole tensor says how far the members are from one another, which is all
        # that the weights need; after it the tensor goes through in parts.
        measure=measure,
        fuse_weights=fuse,
        part="elements",
        numerics="exact",  # no @ and no np.dot: they add up in an order that is the machine's own
        is_symmetric=True,
        params_schema={
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "steps": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 10000,
                    "default": 32,
                    "description": "How many steps of Weiszfeld's; 0 is the weighted mean.",
                },
                "smoothing": {
                    "type": "number",
                    "exclusiveMinimum": 0,
                    "default": 1e-6,
                    "description": "The least distance, as a share of that of the two members "
                    "farthest apart.",
                },
            },
        },
    )


def measure(
    scan: Callable[[], Iterator[Any]], context: FuseContext, *, steps: int, smoothing: float
) -> Float64:
    """What each member is multiplied by."""
    weights = np.array(context.weights, np.float64)
    if weights.min() < 0 or weights.sum() == 0:
        raise ValueError("the members' weights must not be negative, and not all 0")
    shares = weights / weights.sum()
    products = _products(scan, len(weights))
    least = smoothing * np.sqrt(max(0.0, _squares(products).max()))
    if least == 0:  # the members are all equal
        return shares
    for _ in range(steps):
        shares = weights / np.maximum(_distances(products, shares), least)
        shares /= shares.sum()
    return shares


def fuse(
    tensors: Sequence[Array],
    context: FuseContext,
    *,
    steps: int = 32,
    smoothing: float = 1e-6,
) -> Array:
    """The members' sum by the shares that were measured, in float64, rounded once."""
    total = np.zeros(tensors[0].shape, np.float64)
    for tensor, share in zip(tensors, context.measured, strict=True):
        total += share * tensor.astype(np.float64)
    return total.astype(tensors[0].dtype)


def _products(scan: Callable[[], Iterator[Any]], count: int) -> Float64:
    """The scalar products of the members' differences from the first, which lose little."""
    products = np.zeros((count, count))
    for block in scan():
        first = block.tensors[0]
        changes = [np.subtract(tensor, first, dtype=np.float64) for tensor in block.tensors[1:]]
        for i, one in enumerate(changes, start=1):
            for j, other in enumerate(changes[i - 1 :], start=i):
                products[i, j] += np.add.reduce(one * other)
                products[j, i] = products[i, j]
    return products


def _squares(products: Float64) -> Float64:
    """The squared distances of every two members."""
    own = np.diag(products)
    return own[:, None] + own[None, :] - 2 * products


def _distances(products: Float64, shares: Float64) -> Float64:
    """How far each member is from the members' sum by `shares`."""
    return np.sqrt([max(0.0, _square(products, shares, k)) for k in range(len(shares))])


def _square(products: Float64, shares: Float64, member: int) -> float:
    # Where its share is nearly 1, what the others have is known better than what it lacks.
    way = shares.copy()
    way[member] = 0
    way[member] = -np.add.reduce(way)
    return float(np.add.reduce((np.outer(way, way) * products).reshape(-1)))
