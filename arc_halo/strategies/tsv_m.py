"""The strategy `tsv_m`: task singular vectors, made orthogonal to one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import SCALE, schema
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import FloatArray

    Float64 = NDArray[np.float64]


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="tsv_m",
        version=1,
        summary="the strongest singular vectors of each change, made orthogonal and added up",
        fuse_weights=tsv_m,
        is_symmetric=True,
        needs_base=True,
        params_schema=schema(scale=SCALE),
    )


def tsv_m(tensors: Sequence[FloatArray], context: FuseContext, *, scale: float = 1.0) -> FloatArray:
    """B + scale * U S V', from the max(1, floor(min(shape) / N)) largest triplets of each d_i.

    U and V, those of all members side by side, are replaced by their polar factors. What is no
    matrix gets the mean of the changes. The members' weights do not count. In float64.

    A. A. Gargiulo et al., "Task singular vectors" (CVPR 2025).
    """
    from arc_halo.strategies._matrices import merged

    return merged(tensors, context, scale, _orthogonal_sum)


def _orthogonal_sum(changes: list[Float64]) -> Float64:
    keep = max(1, min(changes[0].shape) // len(changes))
    triplets = [np.linalg.svd(change, full_matrices=False) for change in changes]
    left = np.concatenate([u[:, :keep] for u, _, _ in triplets], axis=1)
    values = np.concatenate([s[:keep] for _, s, _ in triplets])
    right = np.concatenate([v[:keep] for _, _, v in triplets], axis=0)
    return np.asarray((_polar(left) * values) @ _polar(right))


def _polar(matrix: Float64) -> Float64:
    """The orthogonal matrix nearest to it."""
    p, _, q = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(p @ q)
