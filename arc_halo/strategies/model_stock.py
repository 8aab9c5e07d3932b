"""The strategy `model_stock`: as far from the base as the members agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import flag, schema
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import FloatArray, Scan

    Float64 = NDArray[np.float64]


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="model_stock",
        version=1,
        summary="between the base and the mean, by the angle of the changes",
        measure=measure,
        fuse_weights=model_stock,
        part="rows",
        numerics="exact",
        is_symmetric=True,
        needs_base=True,
        min_members=2,
        params_schema=schema(
            filter_wise=flag("An angle for each row, not one for the tensor.", default=False)
        ),
    )


def measure(scan: Scan, context: FuseContext, *, filter_wise: bool = False) -> float | None:
    """How far to go from the base to the mean, where that is one number for the tensor."""
    from arc_halo.strategies._sums import gram

    if filter_wise:
        return None
    products = gram(scan)
    return float(_share(products)) if products.size else 0.0


def model_stock(
    tensors: Sequence[FloatArray], context: FuseContext, *, filter_wise: bool = False
) -> FloatArray:
    """t * mean of the members + (1 - t) * B, with t = N c / (1 + (N - 1) c).

    c is the mean cosine of every two changes d_i = W_i - B, of the whole tensor or row by row; 0
    for a pair with a change of zero. t is 0 where it is not defined. The members' weights do not
    count.

    D.-H. Jang et al., "Model stock" (ECCV 2024).
    """
    from arc_halo.strategies._sums import differences, moved

    changes = differences(tensors, context.base)
    share = _share(_row_products(changes))[:, None] if filter_wise else context.measured
    mean = changes[0]
    for change in changes[1:]:
        np.add(mean, change, out=mean)
    np.multiply(mean, share / len(tensors), out=mean, casting="same_kind")
    return moved(context, mean)


def _row_products(changes: Sequence[FloatArray]) -> Float64:
    """The scalar products of every two members' rows: [member, member, row]."""
    count = len(changes)
    products = np.zeros((count, count, changes[0].shape[0]))
    for i, one in enumerate(changes):
        for j in range(i, count):
            product = np.multiply(one, changes[j], dtype=np.float64)
            products[i, j] = products[j, i] = np.add.reduce(product, axis=1)
    return products


def _share(products: Float64) -> Float64:
    """t from scalar products, along the axes beyond the first two."""
    count = products.shape[0]
    norms = np.sqrt(np.stack([products[i, i] for i in range(count)]))
    total = np.zeros(products.shape[2:])
    for i in range(count):
        for j in range(i + 1, count):
            lengths = norms[i] * norms[j]
            defined = np.where(lengths > 0, lengths, 1.0)
            total += np.where(lengths > 0, products[i, j] / defined, 0.0)
    cosine = total / (count * (count - 1) / 2)
    below = 1 + (count - 1) * cosine
    is_defined = np.abs(below) >= 1e-12
    return np.asarray(np.where(is_defined, count * cosine / np.where(is_defined, below, 1.0), 0.0))
