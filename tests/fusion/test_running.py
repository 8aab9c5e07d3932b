"""Merges through the database, against sums worked out from the same bytes in float64."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from arc_halo.errors import FusionError, IncompatibleModelsError, WeightsError
from arc_halo.fusion.recipes import FusionInput, FusionRecipe
from arc_halo.fusion.running import fuse
from arc_halo.plugins import PluginManager
from arc_halo.store import builds
from arc_halo.store.connection import pool
from arc_halo.tensors.dtypes import DTYPES, name_of, size_bytes
from arc_halo.types import FusionStrategy, TensorInfo
from arc_halo.weights.building import Built, Recipe, build
from arc_halo.weights.reading import read_array, read_pieces
from arc_halo.weights.store import WeightStore

Arrays = dict[str, np.ndarray]
Raw = dict[str, tuple[str, tuple[int, ...], bytes]]

FLOATS = [d.name for d in DTYPES.values() if d.is_float and d.numpy_name is not None]
PACKED = ["F4", "F6_E2M3", "F6_E3M2"]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7, 3), (40_001,)]


@pytest.fixture(scope="module")
def store(create_database: Callable[[str], str], template: str) -> Iterator[WeightStore]:
    """One for all tests: what is stored is named by its content, and never changes."""
    codecs = {name: provided.item for name, provided in PluginManager().codecs.items()}
    with pool(create_database(template), 8) as opened:
        yield WeightStore(pool=opened, codecs=codecs)


def stored_raw(store: WeightStore, name: str, tensors: Raw) -> FusionInput:
    infos = [
        TensorInfo(name=n, dtype=dtype, shape=shape, size_bytes=len(raw))
        for n, (dtype, shape, raw) in tensors.items()
    ]
    key = hashlib.sha256(repr(tensors).encode()).digest()
    recipe = Recipe(purpose="write", key=key, recipe={})
    built = build(store, recipe, infos, lambda info: [tensors[info.name][2]])
    return FusionInput(model=f"{name}@1", root=built.root)


def stored(store: WeightStore, name: str, arrays: Arrays, weight: float = 1.0) -> FusionInput:
    raw = {n: (name_of(a.dtype), a.shape, a.tobytes()) for n, a in arrays.items()}
    found = stored_raw(store, name, raw)
    return FusionInput(model=found.model, root=found.root, role="primary", weight=weight)


def recipe(strategy: str | FusionStrategy, *members: FusionInput, **params: Any) -> FusionRecipe:
    if isinstance(strategy, str):
        strategy = PluginManager().strategy(strategy).item
    return FusionRecipe(strategy=strategy, strategy_version="1", params=params, members=members)


def results(store: WeightStore, built: Built) -> Arrays:
    with store.pool.connection() as conn:
        found = builds.sets_by_root(conn, [built.root])[built.root]
        rows = builds.set_tensors(conn, found.id)
    return {row.name: read_array(store, row, row.name) for row in rows}


def models(count: int) -> list[Arrays]:
    """Every float dtype in every shape, with values that all dtypes can hold some of."""
    made = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        arrays: Arrays = {}
        for name in FLOATS:
            dtype = np.dtype(DTYPES[name].numpy_name)
            for shape in SHAPES:
                values = random.normal(scale=0.5, size=shape)
                values = np.abs(values) + 0.1 if name == "F8_E8M0" else values
                arrays[f"{name}{shape}"] = np.asarray(values).astype(dtype)
        made.append(arrays)
    return made


def rounded(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Through the accumulator's float32 (float64 for F64), then once to the member's dtype."""
    wide = values if member.dtype == np.float64 else np.asarray(values).astype(np.float32)
    return np.asarray(wide).astype(member.dtype)


def weighted(members: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    total = sum(w * np.asarray(m).astype(np.float64) for m, w in zip(members, weights, strict=True))
    return rounded(np.asarray(total), members[0])


def assert_same_bits(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def test_linear_is_the_weighted_average(store: WeightStore) -> None:
    arrays = models(3)
    weights = zip(arrays, (1, 2, 5), strict=True)
    members = [stored(store, f"m{i}", a, w) for i, (a, w) in enumerate(weights)]
    built = fuse(store, recipe("linear", *members))
    expected = {
        name: weighted([a[name] for a in arrays], [1 / 8, 2 / 8, 5 / 8]) for name in arrays[0]
    }
    assert_same_bits(results(store, built), expected)


def test_linear_without_normalizing_is_the_weighted_sum(store: WeightStore) -> None:
    arrays = models(2)
    weights = zip(arrays, (0.5, 0.25), strict=True)
    members = [stored(store, f"m{i}", a, w) for i, (a, w) in enumerate(weights)]
    built = fuse(store, recipe("linear", *members, normalize=False))
    expected = {name: weighted([a[name] for a in arrays], [0.5, 0.25]) for name in arrays[0]}
    assert_same_bits(results(store, built), expected)


def test_slerp_stays_on_the_arc(store: WeightStore) -> None:
    arrays = [
        {n: a for n, a in model.items() if n.startswith(("F32", "F64", "F16", "BF16"))}
        for model in models(2)
    ]
    members = [stored(store, f"m{i}", a) for i, a in enumerate(arrays)]
    found = results(store, fuse(store, recipe("slerp", *members, t=0.25)))
    for name, array in found.items():
        first, second = (np.asarray(a[name]).astype(np.float64) for a in arrays)
        expected = np.asarray(arc(first, second, 0.25))
        step = np.finfo(np.float32).eps if array.dtype == np.float64 else _step(array.dtype)
        np.testing.assert_allclose(
            np.asarray(array).astype(np.float64), expected, rtol=step, atol=step
        )


def arc(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    cosine = float(np.vdot(first, second) / lengths) if lengths else 1.0
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)


def _step(dtype: np.dtype[Any]) -> float:
    return float(ml_dtypes.finfo(dtype).eps)


def test_values_beyond_a_dtype_end_as_its_own_rounding_has_it(store: WeightStore) -> None:
    arrays = {
        name: np.full(3, 1e4 if name == "F16" else 200).astype(DTYPES[name].numpy_name)
        for name in ("F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ")
    }
    members = [stored(store, "a", arrays, 9.0), stored(store, "b", arrays, 9.0)]
    built = fuse(store, recipe("linear", *members, normalize=False))
    with np.errstate(over="ignore"):
        expected = {n: weighted([a, a], [9.0, 9.0]) for n, a in arrays.items()}
    assert_same_bits(results(store, built), expected)


def test_tensors_that_are_not_of_floats_are_taken_when_all_agree(store: WeightStore) -> None:
    common: Arrays = {
        "ids": np.arange(5, dtype=np.int64),
        "mask": np.array([True, False]),
        "complex": np.array([1 + 2j], np.complex64),
    }
    members = [
        stored(store, name, {**common, "w": np.full(2, value, np.float32)})
        for name, value in (("a", 1), ("b", 3))
    ]
    found = results(store, fuse(store, recipe("linear", *members)))
    assert_same_bits(found, {**common, "w": np.full(2, 2, np.float32)})


def test_tensors_that_are_not_of_floats_and_differ_are_refused(store: WeightStore) -> None:
    members = [stored(store, str(i), {"ids": np.array([i])}) for i in range(2)]
    with pytest.raises(IncompatibleModelsError, match="ids: dtype I64 cannot be averaged"):
        fuse(store, recipe("linear", *members))


@pytest.mark.parametrize("dtype", PACKED)
def test_packed_floats_that_differ_are_refused_before_anything_is_computed(
    store: WeightStore, dtype: str
) -> None:
    size = size_bytes(dtype, (8,))
    members = [
        stored_raw(
            store, str(i), {"a": ("U8", (1,), b"x"), "packed": (dtype, (8,), bytes([i] * size))}
        )
        for i in range(2)
    ]
    with pytest.raises(IncompatibleModelsError, match=f"packed: dtype {dtype} cannot be averaged"):
        fuse(store, recipe("linear", *members))


@pytest.mark.parametrize("dtype", PACKED)
def test_packed_floats_are_taken_when_all_agree(store: WeightStore, dtype: str) -> None:
    raw = bytes(range(size_bytes(dtype, (8,))))
    members = [
        stored_raw(store, str(i), {"packed": (dtype, (8,), raw), "own": ("F32", (1,), bytes(4))})
        for i in range(2)
    ]
    built = fuse(store, recipe("linear", *members))
    with store.pool.connection() as conn:
        found = builds.sets_by_root(conn, [built.root])[built.root]
        rows = {row.name: row for row in builds.set_tensors(conn, found.id)}
    assert b"".join(map(bytes, read_pieces(store, rows["packed"], "packed"))) == raw


def test_every_tensor_that_does_not_fit_is_listed_up_to_ten(store: WeightStore) -> None:
    def arrays(size: int, count: int) -> Arrays:
        return {f"t{i:02}": np.zeros(size, np.float32) for i in range(count)}

    a, b = stored(store, "a", arrays(2, 12)), stored(store, "b", arrays(3, 11))
    with pytest.raises(IncompatibleModelsError) as caught:
        fuse(store, recipe("linear", a, b))
    lines = caught.value.message.splitlines()
    assert lines[0] == "a@1, b@1 cannot be fused:"
    assert lines[1] == "  t00: shape [2] in a@1, [3] in b@1"
    assert lines[11] == "  and 2 more"
    assert len(lines) == 12


def test_a_base_that_does_not_fit_is_refused(store: WeightStore) -> None:
    members = [stored(store, n, {"w": np.zeros(2, np.float32)}) for n in "ab"]
    base = stored(store, "base", {"w": np.zeros(2, np.float16)})
    with_base = FusionRecipe(
        strategy=PluginManager().strategy("linear").item,
        strategy_version="1",
        params={},
        members=tuple(members),
        base=base,
    )
    with pytest.raises(IncompatibleModelsError, match=r"w: dtype F32 in a@1, F16 in base@1"):
        fuse(store, with_base)


def test_a_strategy_gets_weights_base_and_float32(store: WeightStore) -> None:
    seen: list[Any] = []

    def spy(tensors: Any, context: Any, *, k: int) -> Any:
        seen.append((context.tensor, context.weights, k, context.base.dtype, tensors[0].dtype))
        return tensors[0] - context.base

    schema = {"type": "object", "properties": {"k": {"type": "integer"}}}
    strategy = FusionStrategy(
        name="spy", version=1, summary="s", fuse_weights=spy, params_schema=schema, needs_base=True
    )
    member = stored(store, "a", {"w": np.full(2, 3).astype(ml_dtypes.bfloat16)}, 0.5)
    base = stored(store, "b", {"w": np.full(2, 1).astype(ml_dtypes.bfloat16)})
    made = FusionRecipe(
        strategy=strategy, strategy_version="1", params={"k": 7}, members=(member,), base=base
    )
    found = results(store, fuse(store, made))
    assert seen == [("w", (0.5,), 7, np.float32, np.float32)]
    assert_same_bits(found, {"w": np.full(2, 2).astype(ml_dtypes.bfloat16)})


@pytest.mark.parametrize(
    "answer",
    [
        lambda tensors, context: tensors[0][:1],
        lambda tensors, context: None,
        lambda tensors, context: "text",
        lambda tensors, context: tensors[0] + 1j,
        lambda tensors, context: np.array(["x", "y"]),
        lambda tensors, context: 1 / 0,
    ],
    ids=["shape", "none", "text", "complex", "words", "raises"],
)
def test_a_strategy_that_gives_no_such_tensor_is_an_error_that_names_both(
    store: WeightStore, answer: Callable[..., Any]
) -> None:
    strategy = FusionStrategy(name="bad", version=1, summary="s", fuse_weights=answer)
    member = stored(store, "a", {"layer.w": np.zeros(2, np.float32)})
    with pytest.raises(FusionError, match=r"'bad' .*'layer\.w'") as caught:
        fuse(store, recipe(strategy, member))
    assert caught.value.error_code == "AH071"


def test_a_strategy_may_answer_in_any_dtype_of_real_numbers(store: WeightStore) -> None:
    member = stored(store, "any", {"w": np.array([1.0, 2.0], np.float32)})
    for dtype in (np.float64, np.float16, np.int64, ml_dtypes.bfloat16):
        strategy = FusionStrategy(
            name=f"as-{np.dtype(dtype).name}",
            version=1,
            summary="s",
            fuse_weights=lambda tensors, context, dtype=dtype: tensors[0].astype(dtype),
            params_schema={"type": "object", "properties": {}},
        )
        found = results(store, fuse(store, recipe(strategy, member)))
        assert_same_bits(found, {"w": np.array([1.0, 2.0], np.float32)})


def test_the_same_recipe_is_not_run_again(store: WeightStore) -> None:
    calls: list[str] = []

    def first(tensors: Any, context: Any) -> Any:
        calls.append(context.tensor)
        return tensors[0]

    strategy = FusionStrategy(name="first", version=1, summary="s", fuse_weights=first)
    a = stored(store, "a", {"w": np.zeros(2, np.float32)})
    one = fuse(store, recipe(strategy, a))
    renamed = FusionInput(model="other@9", root=a.root, role="validator", weight=1.0)
    two = fuse(store, recipe(strategy, renamed))
    assert calls == ["w"]
    assert (one.root, two.tensors_built) == (two.root, 0)


def test_all_that_decides_the_result_is_in_the_key() -> None:
    strategy = PluginManager().strategy("linear").item
    root, other = bytes(32), bytes([1] * 32)

    def key(**changes: Any) -> bytes:
        member = FusionInput(model="a@1", root=changes.pop("root", root), weight=2.0)
        fields = {"strategy_version": "1", "params": {}, "base": None} | changes
        fields.setdefault("members", (member, FusionInput(model="b@1", root=other)))
        return FusionRecipe(strategy=strategy, **fields).key

    a, b = FusionInput(model="a@1", root=root, weight=2.0), FusionInput(model="b@1", root=other)
    keys = [
        key(),
        key(root=other),
        key(strategy_version="2"),
        key(params={"normalize": False}),
        key(base=FusionInput(model="c@1", root=root)),
        key(members=(b, a)),
        key(members=(a, FusionInput(model="b@1", root=other, weight=0.5))),
    ]
    assert len(set(keys)) == len(keys)
    assert key(members=(a, FusionInput(model="z@3", root=other, role="primary"))) == key()


def test_weights_that_are_not_stored_are_an_error_that_names_the_model(store: WeightStore) -> None:
    missing = FusionInput(model="ghost@1", root=bytes(32))
    with pytest.raises(WeightsError, match="ghost@1 are not stored") as caught:
        fuse(store, recipe("linear", missing))
    assert caught.value.error_code == "AH064"
