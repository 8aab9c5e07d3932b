"""Params that differ by member: as if each member had been dropped from by its own param."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arc_halo.fusion.blocks import fuse_arrays
from arc_halo.plugins import PluginManager
from arc_halo.types import FuseContext

STRATEGIES = {
    name: provided.item
    for name, provided in PluginManager().strategies.items()
    if provided.item.fuse_weights is not None
}
VALUES = {"density": (0.3, 0.7), "epsilon": (0.05, 0.2), "gamma": (0.02, 0.3)}
CASES = [(name, param) for name, each in STRATEGIES.items() for param in each.member_params]


def fused(name: str, weights: tuple[float, ...], **params: Any) -> np.ndarray[Any, Any]:
    numbers = np.random.default_rng(4)
    base, one, two = (numbers.normal(size=(40, 60)).astype(np.float32) for _ in range(3))
    properties = STRATEGIES[name].params_schema["properties"]
    defaults = {key: each["default"] for key, each in properties.items()}
    # Alone, so that what one member comes to does not depend on the other.
    fixed = {"divide": "none"} if "divide" in properties else {}
    context = FuseContext(
        tensor="w", weights=weights, base=base, shape=base.shape, roots=(b"1" * 32, b"2" * 32)
    )
    found = fuse_arrays(STRATEGIES[name], [one, two], context, {**defaults, **fixed, **params})
    return found - base


def test_the_strategies_are_those_that_drop_changes() -> None:
    assert {name for name, _ in CASES} == {
        "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs",
        "breadcrumbs_ties",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "param"), CASES)
@pytest.mark.parametrize("member", [0, 1])
def test_each_member_has_its_own(name: str, param: str, member: int) -> None:
    """With the other's weight at 0 it is as if its param were everybody's."""
    weights = (1.0, 0.0) if member == 0 else (0.0, 1.0)
    several = fused(name, weights, **{param: list(VALUES[param])})
    single = fused(name, weights, **{param: VALUES[param][member]})
    other = fused(name, weights, **{param: VALUES[param][1 - member]})
    assert several.tobytes() == single.tobytes()
    assert several.tobytes() != other.tobytes()


@pytest.mark.parametrize(("name", "param"), CASES)
def test_equal_ones_are_as_good_as_one(name: str, param: str) -> None:
    value = VALUES[param][0]
    one, both = (
        fused(name, (0.5, 0.5), **{param: value}),
        fused(name, (0.5, 0.5), **{param: [value, value]}),
    )
    assert one.tobytes() == both.tobytes()
