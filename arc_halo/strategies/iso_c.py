"""The strategy `iso_c`: the sum of the changes, all directions as strong."""

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
        name="iso_c",
        version=1,
        summary="the sum of the changes with all singular values made equal",
        fuse_weights=iso_c,
        is_symmetric=True,
        needs_base=True,
        params_schema=schema(scale=SCALE),
    )


def iso_c(tensors: Sequence[FloatArray], context: FuseContext, *, scale: float = 1.0) -> FloatArray:
    """B + scale * U (mean of S) V', with U S V' the sum of the changes d_i.

    What is no matrix gets the mean of the changes. The members' weights do not count. In float64.

    D. Marczak et al., "No task left behind" (ICML 2025).
    """
    from arc_halo.strategies._matrices import merged

    return merged(tensors, context, scale, _isotropic)


def _isotropic(changes: list[Float64]) -> Float64:
    u, s, v = np.linalg.svd(sum(changes, np.zeros(changes[0].shape)), full_matrices=False)
    return np.asarray((u @ v) * s.mean())
