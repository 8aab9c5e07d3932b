"""The strategy `multislerp`: the mean direction of many models, with their mean length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.errors import FusionError
from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import flag, number, schema, weight_sum
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray, Scan


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="multislerp",
        version=1,
        summary="the mean direction of the members or their changes, with their mean length",
        measure=measure,
        fuse_weights=multislerp,
        part="elements",
        numerics="exact",
        is_symmetric=True,
        takes_base=True,
        min_members=2,
        params_schema=schema(
            normalize_weights=flag("Divide the weights by their sum.", default=True),
            eps=number("A mean direction shorter than this is none.", 1e-8, exclusiveMinimum=0),
        ),
    )


def measure(
    scan: Scan, context: FuseContext, *, normalize_weights: bool = True, eps: float = 1e-8
) -> list[float]:
    """What each member's vector is multiplied by."""
    from arc_halo.strategies._spheres import length, lengths
    from arc_halo.strategies._sums import gram

    divisor = weight_sum(context, "multislerp") if normalize_weights else 1.0
    shares = np.array(context.weights) / divisor
    products = gram(scan)
    if not products.size:
        return list(map(float, shares))
    norms = lengths(products)
    units = np.where(norms > 0, shares / np.where(norms > 0, norms, 1.0), 0.0)
    mean = length(products, units)
    if mean < eps:
        if len(shares) > 2 and norms.any():
            raise FusionError(
                f"multislerp: {context.tensor!r}: the members' directions cancel out",
                hint="change the weights, or use another strategy",
            )
        return list(map(float, shares))
    return list(map(float, units / mean * math.fsum(shares * norms)))


def multislerp(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> FloatArray:
    """m * sum of a_i |v_i|, with m the direction of the sum of a_i v_i / |v_i|; plus B if any.

    v_i is the change W_i - B where there is a base, else W_i; a_i the weights. (The step along
    the mean of the tangents that mergekit takes from m has no length: at m they add up to zero.)
    Where directions cancel out, two members give the straight line, more an error. In float64.
    """
    from arc_halo.strategies._sums import added, weighted_sum

    if context.base is None:
        return weighted_sum(tensors, context.measured)
    return added(tensors, context, context.measured)
