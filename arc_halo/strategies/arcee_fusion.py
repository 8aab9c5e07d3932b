"""The strategy `arcee_fusion`: the changes that stand out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.hookspecs import hookimpl
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import FloatArray, Scan


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="arcee_fusion",
        version=1,
        summary="the changes that stand out, by size and divergence",
        measure=measure,
        fuse_weights=arcee_fusion,
        part="rows",
        needs_base=True,
        max_members=1,
    )


def measure(scan: Scan, context: FuseContext) -> float:
    """The importance from which on a change is taken."""
    from arc_halo.strategies._selection import cuts

    size = math.prod(context.shape)
    if not size:
        return 0.0
    places = [share * (size - 1) for share in (0.25, 0.5, 0.75)]
    # The value that has so many smaller ones is the last of the rest, from the largest down.
    counts = [size - bound for place in places for bound in (math.floor(place), math.ceil(place))]
    found = cuts(
        lambda: ([_importance(block.tensors[0], block.base)] * 6 for block in scan()),
        [min(count, size - 1) for count in counts],
        size,
    )
    smallest = min(float(_importance(block.tensors[0], block.base).min()) for block in scan())
    values = [
        smallest if count >= size else cut.threshold
        for count, cut in zip(counts, found, strict=True)
    ]
    first, median, third = (
        low + (place - math.floor(place)) * (high - low)
        for place, low, high in zip(places, values[::2], values[1::2], strict=True)
    )
    return median + 1.5 * (third - first)


def arcee_fusion(tensors: Sequence[FloatArray], context: FuseContext) -> FloatArray:
    """W where the importance of its change reaches median + 1.5 (q3 - q1) of the tensor, else B.

    The importance of an element is abs(W - B) times the Kullback-Leibler divergence of the
    softmax of its row of W from that of B, in float32; quartiles by linear interpolation, exact.
    """
    assert context.base is not None
    is_taken = _importance(tensors[0], context.base) >= context.measured
    return np.asarray(np.where(is_taken, tensors[0], context.base))


def _importance(member: FloatArray, base: FloatArray | None) -> FloatArray:
    assert base is not None
    log_p, log_q = _log_softmax(member), _log_softmax(base)
    divergence = np.add.reduce(np.exp(log_p) * (log_p - log_q), axis=1, keepdims=True)
    change = np.abs(np.subtract(member, base, dtype=np.float64))
    return np.asarray(np.maximum(change * divergence, 0), np.float32)


def _log_softmax(rows: FloatArray) -> NDArray[np.float64]:
    shifted = np.subtract(rows, rows.max(axis=1, keepdims=True), dtype=np.float64)
    return np.asarray(shifted - np.log(np.add.reduce(np.exp(shifted), axis=1, keepdims=True)))
