"""What is rounded to bfloat16 is rounded right: 999 of 1,000 elements, and more."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from arc_halo.fusion.blocks import fuse_arrays
from arc_halo.strategies._sums import sum_dtype
from arc_halo.types import FuseContext
from tests.strategies.oracles import ORACLES
from tests.strategies.test_oracles import STRATEGIES

SIZE = 300_000


def members(count: int, change: float) -> list[np.ndarray[Any, Any]]:
    """Members and last a base, of bfloat16 numbers."""
    numbers = np.random.default_rng(count)
    base = numbers.normal(0, 0.02, SIZE)
    tensors = [base + numbers.normal(0, change, SIZE) for _ in range(count)]
    return [t.astype(ml_dtypes.bfloat16).astype(np.float32) for t in (*tensors, base)]


def is_nearest(found: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Whether no neighbour of a bfloat16 number is nearer to the exact one.

    Both are near enough where decimal weights would make a tie but for their own rounding.
    """
    bits = found.view(np.uint16)
    gap = np.abs(found.astype(np.float64) - exact)
    near = [(bits + step).astype(np.uint16).view(ml_dtypes.bfloat16) for step in (1, 65535)]
    with np.errstate(invalid="ignore"):
        away = [np.abs(other.astype(np.float64) - exact) for other in near]
    gap *= 1 - 1e-12
    return ~((away[0] < gap) | (away[1] < gap))


@pytest.mark.parametrize("change", [0.002, 0.02], ids=["fine-tunes", "strangers"])
@pytest.mark.parametrize(
    "weights",
    [(1.0, 1.0), (0.3, 0.7), (1.5, -0.5), (1.0,) * 8, (40.0, -39.0), (1.0, -1.0), (2.7, 0.1, -2.6)],
    ids=str,
)
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("linear", {"normalize": False}),
        ("task_arithmetic", {}),
        ("task_arithmetic", {"scale": 0.4}),
    ],
)
def test_bfloat16_results_are_the_nearest(
    name: str, params: dict[str, Any], weights: tuple[float, ...], change: float
) -> None:
    *tensors, base = members(len(weights), change)
    of = base if name == "task_arithmetic" else None
    context = FuseContext(tensor="w", weights=weights, base=of, shape=(SIZE,), dtype="BF16")
    schema = STRATEGIES[name].params_schema["properties"]
    given = {key: params.get(key, schema[key]["default"]) for key in schema}
    found = fuse_arrays(STRATEGIES[name], tensors, context, given).astype(ml_dtypes.bfloat16)
    exact = ORACLES[name](tensors, weights, of, **given)
    assert is_nearest(found, exact).mean() >= 0.999


@pytest.mark.parametrize(
    ("dtype", "coefficients", "total", "expected"),
    [
        ("BF16", (0.5, 0.5), 1.0, np.float32),
        ("BF16", (40.0, -39.0), 1.0, np.float64),
        ("BF16", (1e39, 1e39), 2e39, np.float64),
        ("F16", (0.5, 0.5), 1.0, np.float64),
        ("F32", (0.5, 0.5), 1.0, np.float64),
        ("", (0.5, 0.5), 1.0, np.float64),
    ],
)
def test_float32_is_for_bfloat16_where_terms_hardly_cancel(
    dtype: str, coefficients: tuple[float, ...], total: float, expected: Any
) -> None:
    context = FuseContext(tensor="w", weights=coefficients, dtype=dtype)
    assert sum_dtype(context, coefficients, total) is expected
