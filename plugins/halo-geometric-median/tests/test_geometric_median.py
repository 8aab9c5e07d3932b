"""The strategy `geometric_median` keeps the contract of strategies, and is a median."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from arc_halo import FuseContext
from arc_halo.errors import FusionError
from arc_halo.fusion.blocks import fuse_arrays
from arc_halo.plugins import PluginManager
from arc_halo.testing import StrategyContract

# Found by its entry point, as in every project: install the package first.
STRATEGY = PluginManager.load().strategy("geometric_median").item
PARAMS = {"steps": 32, "smoothing": 1e-6}


class TestGeometricMedian(StrategyContract):
    strategy = STRATEGY
    oracle_eps = 64  # of 32 steps

    def oracle(
        self,
        tensors: Sequence[NDArray[Any]],
        weights: Sequence[float],
        base: NDArray[Any] | None,
        params: Mapping[str, Any],
    ) -> NDArray[Any]:
        """Weiszfeld's steps from point to point, with distances as they are."""
        points = np.stack(tensors).reshape(len(tensors), -1)
        apart = max(np.linalg.norm(one - other) for one in points for other in points)
        shares = np.array(weights) / sum(weights)
        for _ in range(params["steps"] if apart else 0):
            middle = shares @ points
            far = [max(np.linalg.norm(p - middle), params["smoothing"] * apart) for p in points]
            shares = np.array(weights) / far
            shares /= shares.sum()
        return (shares @ points).reshape(tensors[0].shape)


class TestGeometricMedianOfNoSteps(TestGeometricMedian):
    params: ClassVar[Mapping[str, Any]] = {"steps": 0}


def fuse(members: Sequence[NDArray[Any]], weights: Sequence[float]) -> NDArray[Any]:
    context = FuseContext(tensor="w", weights=tuple(weights))
    return fuse_arrays(STRATEGY, members, context, PARAMS)


def test_a_member_that_is_far_off_hardly_counts() -> None:
    numbers = np.random.default_rng(3)
    near = [numbers.normal(size=500) for _ in range(4)]
    one, other = (fuse([*near, np.full(500, far)], [1.0] * 5) for far in (1e3, 1e4))
    assert np.abs(one - np.mean(near, axis=0)).max() < 1.5
    assert np.abs(one - other).max() < 0.01


def test_no_point_nearby_has_a_smaller_total_distance() -> None:
    numbers = np.random.default_rng(4)
    members, weights = [numbers.normal(size=20) for _ in range(5)], [1.0, 2.0, 0.5, 1.0, 3.0]

    def total(point: NDArray[Any]) -> float:
        pairs = zip(weights, members, strict=True)
        return float(sum(w * np.linalg.norm(member - point) for w, member in pairs))

    found = fuse(members, weights)
    for _ in range(200):
        assert total(found) <= total(found + 1e-3 * numbers.normal(size=20))


@pytest.mark.parametrize("weights", [[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
def test_weights_that_make_no_sense_are_refused(weights: Sequence[float]) -> None:
    with pytest.raises(FusionError, match="must not be negative"):
        fuse([np.ones(3)] * 3, weights)
