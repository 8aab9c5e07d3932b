"""The weighted average against an oracle in float64 and exact fractions."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from arc_halo.errors import FusionError
from arc_halo.fusion.blocks import fuse_arrays, fused_parts, scan_arrays
from arc_halo.strategies.linear import arc_halo_fusion_strategies
from arc_halo.types import FuseContext

(STRATEGY,) = arc_halo_fusion_strategies()
GOLDEN = "a09ddbe54d948f64b83eafca2804cb680a6bb2759334d15eb5af8c4e4105be59"
NUMBERS = np.random.Generator(np.random.PCG64(11))


def linear(tensors: list[Any], context: FuseContext, **params: Any) -> NDArray[Any]:
    return fuse_arrays(STRATEGY, tensors, context, params)


def context(*weights: float) -> FuseContext:
    return FuseContext(tensor="layer.weight", weights=weights)


def exact(values: list[float], weights: list[float], *, normalize: bool) -> float:
    total = sum(Fraction(w) * Fraction(v) for w, v in zip(weights, values, strict=True))
    return float(total / sum(map(Fraction, weights)) if normalize else total)


floats32 = st.floats(-1e6, 1e6, width=32)
weights = st.floats(2**-10, 2**10)


@given(members=st.lists(st.tuples(floats32, weights), min_size=1, max_size=6), normalize=...)
def test_each_element_is_the_exact_average_rounded(
    members: list[tuple[float, float]], normalize: bool
) -> None:
    values, shares = map(list, zip(*members, strict=True))
    tensors = [np.array([value], np.float32) for value in values]
    result = linear(tensors, context(*shares), normalize=normalize)
    scale = sum(abs(v * w) for v, w in members) / (math.fsum(shares) if normalize else 1)
    expected = exact(values, shares, normalize=normalize)
    assert abs(float(result[0]) - expected) <= abs(expected) * 2**-24 + scale * 2**-50 + 2**-149


@pytest.mark.parametrize("size", [1, 32767, 32768, 32769, 100_000])
def test_blocks_leave_no_seam(size: int) -> None:
    tensors = [NUMBERS.normal(size=size).astype(np.float32) for _ in range(3)]
    shares = np.array([0.5, 0.25, 2.0])
    expected = np.tensordot(shares / shares.sum(), np.stack(tensors).astype(np.float64), 1)
    result = linear(tensors, context(*shares))
    np.testing.assert_allclose(result, expected, rtol=1.2e-7, atol=1e-12)


def test_float64_members_are_averaged_in_float64() -> None:
    tensors = [np.array([1.0]), np.array([1.0 + 2**-40])]
    assert linear(tensors, context(1, 1)).tolist() == [1.0 + 2**-41]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_equal_float32_members_come_out_bit_by_bit(values: list[float]) -> None:
    member = np.array(values, np.float32)
    assert linear([member] * 3, context(0.1, 0.7, 0.3)).tobytes() == member.tobytes()


@given(order=st.permutations(range(4)))
def test_the_order_of_members_does_not_matter(order: list[int]) -> None:
    numbers = np.random.Generator(np.random.PCG64(3))
    tensors = [numbers.normal(size=(5, 6)).astype(np.float32) for _ in range(4)]
    shares = [0.1, 0.4, 0.2, 0.7]
    result = linear([tensors[i] for i in order], context(*(shares[i] for i in order)))
    np.testing.assert_array_max_ulp(result, linear(tensors, context(*shares)), 1)


@given(scale=st.floats(2**-10, 2**10))
def test_only_the_proportions_of_weights_count(scale: float) -> None:
    tensors = [NUMBERS.normal(size=8).astype(np.float32) for _ in range(2)]
    result = linear(tensors, context(0.3 * scale, 0.9 * scale))
    np.testing.assert_array_max_ulp(result, linear(tensors, context(0.3, 0.9)), 1)


def test_without_normalizing_the_weights_are_factors() -> None:
    tensors = [np.array([1, 2], np.float32), np.array([10, 20], np.float32)]
    assert linear(tensors, context(2, -1), normalize=False).tolist() == [-8, -16]


@pytest.mark.parametrize("shares", [(0, 0), (1, -1), (0.0,)])
def test_weights_that_add_up_to_zero_cannot_be_normalized(shares: tuple[float, ...]) -> None:
    tensors = [np.ones(2, np.float32)] * len(shares)
    with pytest.raises(FusionError, match=r"'layer\.weight'.*add up to zero") as caught:
        linear(tensors, context(*shares))
    assert caught.value.error_code == "AH071"
    assert not linear(tensors, context(*shares), normalize=False).any()


def test_a_member_of_weight_zero_takes_no_part() -> None:
    member = np.array([1.5, -0.0], np.float32)
    broken = np.array([np.nan, np.inf], np.float32)
    assert linear([broken, member], context(0, 3)).tobytes() == member.tobytes()


def test_nan_and_infinity_go_where_arithmetic_takes_them() -> None:
    first = np.array([np.nan, np.inf, np.inf, 1], np.float32)
    second = np.array([1, 1, -np.inf, 1], np.float32)
    np.testing.assert_array_equal(
        linear([first, second], context(1, 1)), np.array([np.nan, np.inf, np.nan, 1], np.float32)
    )


def test_a_sum_beyond_float32_is_infinite() -> None:
    largest = np.array([np.finfo(np.float32).max])
    assert linear([largest.astype(np.float32)] * 2, context(1, 1), normalize=False) == np.inf


def test_the_memory_taken_is_that_of_a_few_parts() -> None:
    tensors: list[NDArray[np.floating]] = [np.ones(2**21, np.float32) for _ in range(4)]
    context = FuseContext(tensor="w", weights=(1.0,) * 4, shape=tensors[0].shape)
    tracemalloc.start()
    for _ in fused_parts(
        STRATEGY, {}, context, lambda: scan_arrays(tensors, None, context.shape, STRATEGY.part)
    ):
        pass
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 3 * 2**20


def test_the_bits_of_a_version_never_change() -> None:
    ramp = np.arange(-500, 500)
    tensors = [(ramp * k % 997 / 991 - 0.5).astype(np.float32) for k in (7, 31, 101)]
    result = linear(tensors, context(0.6, 0.3, 0.25))
    assert hashlib.sha256(result.astype("<f4").tobytes()).hexdigest() == GOLDEN
