"""The parts of tensors: the same results, bit by bit, however tensors are read and by whom."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import FusionError
from arc_halo.fusion.blocks import BLOCK_ITEMS, fuse_arrays, fused_parts, spans
from arc_halo.fusion.inputs import Input, scan_inputs
from arc_halo.plugins import PluginManager
from arc_halo.strategies._draws import draws
from arc_halo.strategies._selection import cuts
from arc_halo.types import Block, FuseContext, FusionStrategy

STRATEGIES = {
    name: provided.item
    for name, provided in PluginManager().strategies.items()
    if provided.item.fuse_weights is not None
}
PARAMS: dict[str, dict[str, Any]] = {
    "nearswap": {"t": 0.2},
    "ties": {"density": 0.3},
    "dare_ties": {"density": 0.4, "rescale": "l1"},
    "dare_linear": {"density": 0.4},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1},
    "sce": {"select_topk": 0.3},
    "nuslerp": {"flatten": False, "row_wise": True},
}
SHAPE = (170, 1000)


class Memory:
    """A tensor in memory that counts how it is read."""

    def __init__(self, array: np.ndarray[Any, Any], alignment: int) -> None:
        self.dtype = {2: "F16", 4: "F32", 8: "F64"}[array.dtype.itemsize]
        self.raw = array.tobytes()
        self.size_bytes = len(self.raw)
        self.alignment = alignment
        self.largest = 0

    def read_into(self, offset: int, out: memoryview) -> None:
        self.largest = max(self.largest, out.nbytes)
        out[:] = self.raw[offset : offset + out.nbytes]


def arrays(shape: tuple[int, ...], count: int) -> list[np.ndarray[Any, Any]]:
    numbers = np.random.default_rng(5)
    base = numbers.normal(size=shape)
    members = [base + 0.3 * numbers.normal(size=shape) for _ in range(count)]
    return [np.asarray(each, np.float32) for each in (*members, base)]


def settings(strategy: FusionStrategy) -> dict[str, Any]:
    properties = strategy.params_schema.get("properties", {})
    defaults = {name: each["default"] for name, each in properties.items() if "default" in each}
    return {**defaults, **PARAMS.get(strategy.name, {})}


def streamed(
    strategy: FusionStrategy, tensors: list[Any], context: FuseContext, window: int, alignment: int
) -> bytes:
    *members, base = [Input("m", "w", Memory(each, alignment), window) for each in tensors]

    def scan() -> Iterator[Block]:
        used = base if strategy.needs_base else None
        return scan_inputs(members, used, context.shape, strategy.part)

    parts = fused_parts(strategy, settings(strategy), context, scan)
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_bits_do_not_depend_on_windows_chunks_or_threads(name: str) -> None:
    strategy = STRATEGIES[name]
    count = max(strategy.min_members, min(3, strategy.max_members or 3))
    shape = SHAPE if strategy.part != "tensor" else (60, 80)
    tensors = arrays(shape, count)
    context = FuseContext(
        tensor="w", weights=tuple(0.3 + i for i in range(count)), shape=shape,
        roots=tuple(bytes([i]) * 32 for i in range(count)),
    )  # fmt: skip
    base = tensors[-1] if strategy.needs_base else None
    whole = fuse_arrays(strategy, tensors[:-1], replace(context, base=base), settings(strategy))
    ways = [(2**16, 4096), (2**20, 2**18), (2**22, 2**20), (3 * 2**20, 100_000)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda way: streamed(strategy, tensors, context, *way), ways * 2)
        assert {hashlib.sha256(raw).digest() for raw in found} == {
            hashlib.sha256(whole.tobytes()).digest()
        }


def test_a_window_is_no_larger_than_asked_for() -> None:
    (array, _) = arrays((2_000_000,), 1)
    source = Memory(array, 2**18)
    each = Input("m", "w", source, 2**20)
    for span in spans(array.shape, "elements"):
        assert np.array_equal(each.block(span), array[span.start : span.start + span.count])
    assert source.largest == 2**20


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_what_is_not_finite_is_refused_by_name(name: str, broken: float) -> None:
    strategy = STRATEGIES[name]
    count = max(strategy.min_members, min(3, strategy.max_members or 3))
    tensors = arrays((30, 40), count)
    tensors[0][7, 3] = broken
    context = FuseContext(tensor="w", weights=(1.0,) * count, shape=(30, 40))
    with pytest.raises(FusionError, match="m: 'w' holds NaN or infinity"):
        streamed(strategy, tensors, context, 2**20, 2**18)


@given(
    shape=st.lists(st.integers(0, 400), max_size=3).map(tuple),
    part=st.sampled_from(["elements", "rows", "tensor"]),
)
def test_parts_cover_a_tensor_once_and_in_order(shape: tuple[int, ...], part: Any) -> None:
    end = 0
    for span in spans(shape, part):
        assert span.start == end
        assert math.prod(span.shape) == span.count
        assert part == "tensor" or 0 < span.count <= max([BLOCK_ITEMS, *shape[-1:]])
        end += span.count
    assert end == math.prod(shape)


@given(
    values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=60),
    pieces=st.integers(1, 7),
    data=st.data(),
)
def test_the_largest_are_found_in_any_parts(values: list[float], pieces: int, data: Any) -> None:
    array = np.array(values, np.float32)
    keep = data.draw(st.integers(0, len(array)))
    parts = np.array_split(array, pieces)
    (cut,) = cuts(lambda: ([part] for part in parts), [keep], len(array))
    keeper = cut.keeper()
    mask = np.concatenate([keeper.mask(part) for part in parts])
    expected = np.zeros(len(array), bool)
    expected[np.argsort(-np.abs(array), kind="stable")[:keep]] = True
    assert np.array_equal(mask, expected)


@given(start=st.integers(0, 5000), count=st.integers(1, 300))
def test_an_element_s_number_is_its_own(start: int, count: int) -> None:
    context = FuseContext(tensor="w", weights=(1.0,), roots=(bytes(32),))
    whole = draws(context, 3, 0, 0, 6000)
    assert np.array_equal(draws(context, 3, 0, start, count), whole[start : start + count])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: (replace(c, tensor="v"), 3, 0),
        lambda c: (replace(c, roots=(b"\x01" * 32,)), 3, 0),
        lambda c: (c, 4, 0),
    ],
    ids=["name", "root", "seed"],
)
def test_other_names_roots_and_seeds_have_other_numbers(
    change: Callable[[FuseContext], tuple[FuseContext, int, int]],
) -> None:
    context = FuseContext(tensor="w", weights=(1.0,), roots=(bytes(32),))
    first = draws(context, 3, 0, 0, 4000)
    other_context, seed, member = change(context)
    other = draws(other_context, seed, member, 0, 4000)
    assert np.count_nonzero(first == other) < 5
    assert abs(first.mean() / 2**31 - 1) < 0.05
