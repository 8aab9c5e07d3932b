"""The strategy `wudi`: the change that interferes least with each member, in closed form."""

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
        name="wudi",
        version=2,
        summary="the change that interferes least with the members' own, in closed form",
        fuse_weights=wudi,
        is_symmetric=True,
        needs_base=True,
        params_schema=schema(scale=SCALE),
    )


def wudi(tensors: Sequence[FloatArray], context: FuseContext, *, scale: float = 1.0) -> FloatArray:
    """B + scale * x, x the least sum of |(x - d_i) d_i'|^2 / |d_i|^2.

    That is x = (sum d_i G_i) (sum G_i)^+ with G_i = d_i' d_i / |d_i|^2, the pseudo-inverse without
    singular values below max(shape) * eps of the largest. What is no matrix gets the mean of the
    changes. The members' weights do not count. In float64.

    R. Cheng et al., "Whoever started the interference should end it" (ICML 2025), which descends.
    """
    from arc_halo.strategies._matrices import merged

    return merged(tensors, context, scale, _least_interference)


def _least_interference(changes: list[Float64]) -> Float64:
    norms = [float(np.sqrt(np.add.reduce(np.square(change).reshape(-1)))) for change in changes]
    used = [(change, norm) for change, norm in zip(changes, norms, strict=True) if norm > 0]
    if not used:
        return np.zeros(changes[0].shape)
    # With A the d_i / |d_i| one below the other, sum G_i is A'A, whose null space A knows better.
    stacked = np.concatenate([change / norm for change, norm in used], axis=0)
    _, s, v = np.linalg.svd(stacked, full_matrices=False)
    basis = v[s > max(stacked.shape) * np.finfo(np.float64).eps * s[0]]
    strength = s[: len(basis)] ** 2
    total = np.zeros(changes[0].shape)
    for change, norm in used:
        # d d' d by the smaller of its two products.
        is_wide = change.shape[0] <= change.shape[1]
        cube = (change @ change.T) @ change if is_wide else change @ (change.T @ change)
        total += cube / norm**2
    return np.asarray((total @ basis.T / strength) @ basis)
