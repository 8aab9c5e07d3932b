"""The strategy `nuslerp`: along the arc between two models or two changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import flag, schema
from arc_halo.types import Block, FuseContext, FusionStrategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import FloatArray, Scan

    Float64 = NDArray[np.float64]


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="nuslerp",
        version=1,
        summary="spherical interpolation of two models or of their changes, whole or by vectors",
        measure=measure,
        fuse_weights=nuslerp,
        part="elements",
        is_symmetric=True,
        takes_base=True,
        min_members=2,
        max_members=2,
        params_schema=schema(
            flatten=flag("Take the tensor as one vector.", default=True),
            row_wise=flag(
                "Without `flatten`: vectors run along the first axis, not along the last.",
                default=False,
            ),
        ),
    )


def measure(
    scan: Scan, context: FuseContext, *, flatten: bool = True, row_wise: bool = False
) -> tuple[Float64, Float64]:
    """What each member is multiplied by, for each vector."""
    from arc_halo.strategies._spheres import arc_shares
    from arc_halo.strategies._sums import vectors

    _, count = _layout(context.shape, flatten, row_wise)
    squares, gaps = np.zeros((2, 2, count))
    for block in scan():
        for total, vector in zip(squares, vectors(block), strict=True):
            square = np.square(vector, dtype=np.float64)
            _gather(total, square, block.start, context.shape, flatten, row_wise)
    norms = np.sqrt(squares)
    # Sum and difference of the directions give the angle exactly, however small or flat it is.
    scales = np.where(norms > 0, 1 / np.where(norms > 0, norms, 1.0), 0.0)
    for block in scan():
        places = _places(context.shape, block.start, block.tensors[0].size, flatten, row_wise)
        one, two = (v * scale[places] for v, scale in zip(vectors(block), scales, strict=True))
        for total, part in zip(gaps, (one - two, one + two), strict=True):
            _gather(total, np.square(part), block.start, context.shape, flatten, row_wise)
    return arc_shares(norms, gaps, _share(context))


def nuslerp(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    flatten: bool = True,
    row_wise: bool = False,
) -> FloatArray:
    """[sin((1-t)a) v_1 + sin(t a) v_2] / sin(a), a the angle of v_1 and v_2; plus a base B.

    v_i is the change W_i - B where there is a base, else W_i. t is the second's share of the two
    weights, 0.5 where they add up to nothing. The whole tensor is one vector, or every vector along
    an axis has an angle of its own. The straight line where the sine is 1e-8 or less. In float64.
    """
    from arc_halo.strategies._sums import moved, rounded, vectors

    places = _places(context.shape, context.start, tensors[0].size, flatten, row_wise)
    first, second = (shares[places] for shares in context.measured)
    one, two = vectors(Block(tuple(tensors), context.base, context.start))
    merged = one * first + two * second
    return rounded(merged, tensors[0]) if context.base is None else moved(context, merged)


def _share(context: FuseContext) -> float:
    total = math.fsum(context.weights)
    return 0.5 if abs(total) < 1e-6 else context.weights[1] / total


def _layout(shape: Sequence[int], flatten: bool, row_wise: bool) -> tuple[int, int]:
    """How many elements go by before the next vector, or the next element of all, begins; and how
    many vectors there are."""
    size = math.prod(shape)
    if flatten:
        return max(1, size), 1
    if row_wise:
        inner = math.prod(shape[1:]) if shape else 1
        return max(1, inner), inner
    columns = shape[-1] if shape else 1
    return max(1, columns), size // max(1, columns)


def _places(
    shape: Sequence[int], start: int, count: int, flatten: bool, row_wise: bool
) -> int | NDArray[np.int64]:
    """Which vector each element of a part belongs to."""
    if flatten:
        return 0
    inner, _ = _layout(shape, flatten, row_wise)
    elements = np.arange(start, start + count, dtype=np.int64)
    return elements % inner if row_wise else elements // inner


def _gather(
    totals: Float64,
    products: Float64,
    start: int,
    shape: Sequence[int],
    flatten: bool,
    row_wise: bool,
) -> None:
    """Add what a part has of each vector."""
    inner, _ = _layout(shape, flatten, row_wise)
    if flatten:
        totals[0] += np.add.reduce(products)
        return
    position = 0
    while position < products.size:
        offset = (start + position) % inner
        whole = (products.size - position) // inner if offset == 0 else 0
        if whole:
            block = products[position : position + whole * inner].reshape(whole, inner)
            if row_wise:
                totals += np.add.reduce(block, axis=0)
            else:
                row = (start + position) // inner
                totals[row : row + whole] += np.add.reduce(block, axis=1)
            position += whole * inner
            continue
        size = min(inner - offset, products.size - position)
        piece = products[position : position + size]
        if row_wise:
            totals[offset : offset + size] += piece
        else:
            totals[(start + position) // inner] += np.add.reduce(piece)
        position += size
