"""Spherical interpolation against an oracle that is another formula of the same arc."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from arc_halo.errors import FusionError
from arc_halo.fusion.blocks import fuse_arrays, fused_parts, scan_arrays
from arc_halo.strategies.slerp import arc_halo_fusion_strategies
from arc_halo.types import FuseContext

(STRATEGY,) = arc_halo_fusion_strategies()
GOLDEN = "e79c902ce40602dbd887776ddc6d20dbe557618b7c520ce2df4aa44ed0904cc0"
HALF = FuseContext(tensor="layer.weight", weights=(1.0, 1.0))
Array = NDArray[np.float64]


def slerp(tensors: list[Any], context: FuseContext, **params: Any) -> NDArray[Any]:
    return fuse_arrays(STRATEGY, tensors, context, params)


def oracle(a: Array, b: Array, t: float) -> Array:
    """Rotation of the first direction towards the second, by Gram-Schmidt, in the plane of both.

    With x = |a| u and y = |b| (u cos + v sin), the formula with sines weighs x and y by lengths.
    """
    u = a / np.linalg.norm(a)
    across = b - (b @ u) * u
    v = across / np.linalg.norm(across)
    angle = math.atan2(float(b @ v), float(b @ u))
    first = u * np.linalg.norm(a) * math.sin((1 - t) * angle)
    second = (u * math.cos(angle) + v * math.sin(angle)) * np.linalg.norm(b) * math.sin(t * angle)
    return np.asarray((first + second) / math.sin(angle))


def members(seed: int, *shape: int, dtype: type = np.float32) -> list[NDArray[np.floating]]:
    numbers = np.random.Generator(np.random.PCG64(seed))
    return [numbers.normal(size=shape).astype(dtype) for _ in range(2)]


@given(seed=st.integers(0, 1000), t=st.floats(0, 1), size=st.integers(2, 50))
def test_it_is_the_point_on_the_arc(seed: int, t: float, size: int) -> None:
    a, b = members(seed, size, dtype=np.float64)
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    if abs(cosine) < 0.999:
        np.testing.assert_allclose(slerp([a, b], HALF, t=t), oracle(a, b, t), rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 100), t=st.floats(0, 1), angle=st.floats(0.05, 3.05))
def test_unit_vectors_stay_on_the_sphere_and_turn_evenly(seed: int, t: float, angle: float) -> None:
    basis, _ = np.linalg.qr(np.stack(members(seed, 6, dtype=np.float64), axis=1))
    a, b = basis[:, 0], basis[:, 0] * math.cos(angle) + basis[:, 1] * math.sin(angle)
    result = slerp([a, b], HALF, t=t)
    assert np.linalg.norm(result) == pytest.approx(1, abs=1e-9)
    assert float(result @ a) == pytest.approx(math.cos(t * angle), abs=1e-9)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2), (100, 1000)])
def test_a_tensor_is_one_vector_whatever_its_shape(shape: tuple[int, ...]) -> None:
    a, b = members(5, *shape)
    flat = slerp([a.reshape(-1), b.reshape(-1)], HALF, t=0.3)
    result = slerp([a, b], HALF, t=0.3)
    assert np.array_equal(result, flat.reshape(shape))
    expected = oracle(a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64), 0.3)
    np.testing.assert_allclose(flat, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (3,), (4, 5)])
def test_the_ends_are_the_members_bit_by_bit(shape: tuple[int, ...], dtype: type) -> None:
    a, b = members(6, *shape, dtype=dtype)
    assert slerp([a, b], HALF, t=0).tobytes() == a.tobytes()
    assert slerp([a, b], HALF, t=1).tobytes() == b.tobytes()


@given(t=st.floats(0, 1), exponent=st.integers(-60, 60))
def test_scaling_both_members_scales_the_result(t: float, exponent: int) -> None:
    a, b = members(7, 20)
    scale = np.float32(2.0**exponent)
    np.testing.assert_array_equal(
        slerp([a * scale, b * scale], HALF, t=t), slerp([a, b], HALF, t=t) * scale
    )


@given(t=st.floats(0, 1))
def test_turning_round_the_members_and_t_changes_nothing(t: float) -> None:
    a, b = members(8, 4, 5)
    np.testing.assert_allclose(
        slerp([a, b], HALF, t=t), slerp([b, a], HALF, t=1 - t), rtol=1e-6, atol=1e-7
    )


@given(t=st.floats(0, 1), values=st.lists(st.floats(-1e9, 1e9, width=32), min_size=1))
def test_equal_float32_members_come_out_bit_by_bit(t: float, values: list[float]) -> None:
    member = np.array(values, np.float32)
    assert slerp([member, member], HALF, t=t).tobytes() == member.tobytes()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param([1.0, 2.0], [1.001, 2.0], id="nearly parallel"),
        pytest.param([1.0, 2.0], [3.0, 6.0], id="parallel"),
        pytest.param([1.0, 2.0], [-3.0, -6.0], id="opposite"),
        pytest.param([1.0, 2.0], [0.0, 0.0], id="second zero"),
        pytest.param([0.0, 0.0], [1.0, 2.0], id="first zero"),
        pytest.param([0.0, 0.0], [0.0, 0.0], id="both zero"),
        pytest.param([2.0], [5.0], id="one element"),
    ],
)
def test_where_there_is_no_arc_it_is_the_straight_line(a: list[float], b: list[float]) -> None:
    result = slerp([np.array(a), np.array(b)], HALF, t=0.25)
    np.testing.assert_allclose(result, 0.75 * np.array(a) + 0.25 * np.array(b), rtol=1e-15)


@pytest.mark.parametrize(("angle", "is_arc"), [(0.0317, True), (0.0315, False)])
def test_the_straight_line_begins_at_a_cosine_of_0_9995(angle: float, is_arc: bool) -> None:
    a, b = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    length = np.linalg.norm(slerp([a, b], HALF, t=0.5))
    assert (length == pytest.approx(1, abs=1e-12)) == is_arc


def test_a_scalar_is_interpolated_on_the_line() -> None:
    a, b = np.array(2.0, np.float32), np.array(-4.0, np.float32)
    result = slerp([a, b], HALF, t=0.5)
    assert (result.shape, float(result)) == ((), -1.0)


@given(first=st.floats(0, 10), second=st.floats(0.001, 10))
def test_without_t_the_weights_decide(first: float, second: float) -> None:
    a, b = members(9, 10)
    weighed = slerp([a, b], FuseContext(tensor="w", weights=(first, second)))
    np.testing.assert_array_max_ulp(weighed, slerp([a, b], HALF, t=second / (first + second)), 1)


def test_t_goes_before_the_weights() -> None:
    a, b = members(10, 10)
    context = FuseContext(tensor="w", weights=(0.0, 0.0))
    assert np.array_equal(slerp([a, b], context, t=0.5), slerp([a, b], HALF))


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (-1.0, 3.0), (3.0, -1.0)])
def test_weights_that_give_no_t_are_refused(weights: tuple[float, float]) -> None:
    a, b = members(11, 3)
    with pytest.raises(FusionError, match=r"'layer\.weight'.*between 0 and 1"):
        slerp([a, b], FuseContext(tensor="layer.weight", weights=weights))


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_a_t_beyond_the_arc_is_refused(t: float) -> None:
    with pytest.raises(FusionError, match="between 0 and 1"):
        slerp(members(12, 3), HALF, t=t)


@pytest.mark.parametrize("count", [1, 3])
def test_it_takes_two_members(count: int) -> None:
    with pytest.raises(FusionError, match=f"exactly 2 members, not {count}"):
        slerp([np.ones(2)] * count, FuseContext(tensor="w", weights=(1.0,) * count))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_nan_or_an_infinity_makes_the_whole_tensor_nan(broken: float) -> None:
    a, b = members(13, 10)
    a[4] = broken
    assert np.isnan(slerp([a, b], HALF, t=0.5)).all()
    assert np.array_equal(slerp([a, b], HALF, t=1), b)


def test_the_memory_taken_is_that_of_a_few_parts() -> None:
    tensors: list[NDArray[np.floating]] = [np.ones(2**21, np.float32) for _ in range(2)]
    context = FuseContext(tensor="w", weights=(1.0,) * 2, shape=tensors[0].shape)
    tracemalloc.start()
    for _ in fused_parts(
        STRATEGY, {}, context, lambda: scan_arrays(tensors, None, context.shape, STRATEGY.part)
    ):
        pass
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 3 * 2**20


def test_the_bits_of_version_2_never_change() -> None:
    ramp = np.arange(-500, 500)
    tensors = [(ramp * k % 997 / 991 - 0.5).astype(np.float32) for k in (7, 31)]
    result = slerp(tensors, HALF, t=0.375)
    assert hashlib.sha256(result.astype("<f4").tobytes()).hexdigest() == GOLDEN
