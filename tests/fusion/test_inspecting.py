"""What is predicted of a merge from a sample, held against all elements and another computation."""

from __future__ import annotations

import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from arc_halo.errors import FusionError, IncompatibleModelsError
from arc_halo.formats.finding import find_format
from arc_halo.fusion.conflicts import Inspection
from arc_halo.fusion.files import OpenModel
from arc_halo.fusion.inspecting import bare_recipe, inspect_files
from arc_halo.fusion.recipes import FusionInput
from arc_halo.fusion.sampling import PLACES, places
from arc_halo.plugins import PluginManager

WEIGHTS = Path(__file__).parents[2] / "examples" / "weights"
PLUGINS = PluginManager()
FORMATS = {name: provided.item for name, provided in PLUGINS.formats.items()}
EVERYTHING = 2**40

Arrays = dict[str, np.ndarray]


def inspect(paths: dict[str, Path], base: str | None = None, **options: int) -> Inspection:
    """The models at `paths`, all but the base as members."""
    members = [FusionInput(model=name, root=None) for name in paths if name != base]
    recipe = bare_recipe(
        members,
        FusionInput(model=base, root=None) if base else None,
        PLUGINS.strategies["linear"],
    )
    with ExitStack() as stack:
        opened = {
            name: OpenModel(
                name=name, reader=stack.enter_context(find_format(path, FORMATS).open(path))
            )
            for name, path in paths.items()
        }
        return inspect_files(opened, recipe, **options)


def saved(directory: Path, **models: Arrays) -> dict[str, Path]:
    for name, arrays in models.items():
        save_file(arrays, directory / f"{name}.safetensors")
    return {name: directory / f"{name}.safetensors" for name in models}


def demo() -> dict[str, Path]:
    return {name: WEIGHTS / name for name in ("base", "scripture", "python")}


@pytest.fixture(scope="module")
def exact() -> Inspection:
    return inspect(demo(), "base", sample=EVERYTHING)


def test_figures_of_all_elements_are_those_of_numpy(exact: Inspection) -> None:
    base, one, two = (
        {name: array.astype(np.float64).ravel() for name, array in load_file(path).items()}
        for path in (WEIGHTS / name / "model.safetensors" for name in demo())
    )
    assert [each.name for each in exact.tensors] == sorted(base)
    for each in exact.tensors:
        first, second = one[each.name] - base[each.name], two[each.name] - base[each.name]
        lengths = [np.sqrt(np.sum(x**2)) for x in (first, second, base[each.name])]
        both = (first != 0) & (second != 0)
        assert each.elements == each.sampled == len(first)
        assert each.mean_cosine == pytest.approx(
            np.sum(first * second) / lengths[0] / lengths[1], abs=1e-12
        )
        assert each.sign_conflict == np.mean((first > 0)[both] != (second > 0)[both])
        assert each.relative_norms == pytest.approx(
            (lengths[0] / lengths[2], lengths[1] / lengths[2])
        )
    assert exact.read_bytes == exact.size_bytes == 3 * sum(2 * len(a) for a in base.values())


@pytest.mark.parametrize(("sample", "tolerance"), [(65536, 0.02), (8192, 0.05)])
def test_a_sample_comes_close_to_all_elements(
    exact: Inspection, sample: int, tolerance: float
) -> None:
    found = inspect(demo(), "base", sample=sample)
    assert found.read_bytes < exact.read_bytes * (0.6 if sample == 65536 else 0.25)
    assert found.mean_cosine == pytest.approx(exact.mean_cosine, abs=tolerance / 4)
    assert found.sign_conflict == pytest.approx(exact.sign_conflict, abs=tolerance / 4)
    for each, whole in zip(found.tensors, exact.tensors, strict=True):
        assert each.sampled <= sample
        assert each.mean_cosine == pytest.approx(whole.mean_cosine, abs=tolerance)
        assert each.sign_conflict == pytest.approx(whole.sign_conflict, abs=tolerance)
        assert each.relative_norms == pytest.approx(whole.relative_norms, rel=8 * tolerance)
    assert inspect(demo(), "base", sample=sample) == found


def test_every_two_of_three_members_have_their_figures(tmp_path: Path) -> None:
    base = np.array([1, 2, 3, 4], np.float32)
    changes = {"a": [1, 1, 0, 0], "b": [1, -1, 1, 0], "c": [-2, -2, 0, 0]}
    models = {name: {"w": base + np.float32(change)} for name, change in changes.items()}
    (found,) = inspect(saved(tmp_path, base={"w": base}, **models), "base").tensors
    assert found.members == ("a", "b", "c")
    assert found.cosines == pytest.approx((0, -1, 0))
    assert found.sign_conflicts == (0.5, 1, 0.5)
    assert found.mean_cosine == pytest.approx(-1 / 3)
    assert found.relative_norms == pytest.approx(np.sqrt(np.array([2, 3, 8]) / 30))


def test_what_is_unchanged_has_no_direction(tmp_path: Path) -> None:
    base = {"w": np.ones(5, np.float32), "z": np.zeros(3, np.float32), "ids": np.arange(4)}
    tuned = base | {"w": np.full(5, 2, np.float32)}
    found = inspect(saved(tmp_path, base=base, same=base, tuned=tuned), "base")
    one, zero = found.tensors
    assert (one.name, one.cosines, one.sign_conflicts) == ("w", (None,), (None,))
    assert one.relative_norms == (0, 1)
    assert (zero.name, zero.relative_norms) == ("z", (None, None))
    assert (found.mean_cosine, found.sign_conflict, found.worst()) == (None, None, [])
    assert found.relative_norms == {"same": 0, "tuned": 1}


def test_without_a_base_the_models_themselves_are_compared(tmp_path: Path) -> None:
    one, two = np.float64([3, 4, 0]), np.float64([4, 3, -1])
    found = inspect(saved(tmp_path, one={"w": one}, two={"w": two}))
    (tensor,) = found.tensors
    assert tensor.mean_cosine == pytest.approx(24 / (5 * np.sqrt(26)))
    assert (tensor.sign_conflict, tensor.relative_norms, found.relative_norms) == (0, None, {})


def test_models_of_different_dtypes_can_be_compared(tmp_path: Path) -> None:
    one, two = np.float32([1, -1]), np.float16([1, 1])
    (found,) = inspect(saved(tmp_path, one={"w": one}, two={"w": two})).tensors
    assert (found.cosines, found.sign_conflicts) == ((0,), (0.5,))


def test_models_that_cannot_be_merged_are_refused(tmp_path: Path) -> None:
    one, two = {"w": np.zeros((2, 3), np.float32)}, {"w": np.zeros((3, 2), np.float32)}
    with pytest.raises(IncompatibleModelsError, match="shape"):
        inspect(saved(tmp_path, one=one, two=two))


def test_nan_is_refused_as_a_merge_would_refuse_it(tmp_path: Path) -> None:
    one, two = {"w": np.float32([1, np.nan])}, {"w": np.float32([1, 2])}
    with pytest.raises(FusionError, match="one: 'w' holds NaN"):
        inspect(saved(tmp_path, one=one, two=two))


def test_numbers_beyond_all_sums_are_left_open(tmp_path: Path) -> None:
    one, two = {"w": np.full(3, 1e300)}, {"w": np.full(3, -1e300)}
    (found,) = inspect(saved(tmp_path, one=one, two=two)).tensors
    assert (found.cosines, found.sign_conflicts) == ((None,), (1,))


def test_memory_does_not_grow_with_tensor_or_sample(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=2**22).astype(np.float32)
    paths = saved(tmp_path, one={"w": numbers}, two={"w": numbers[::-1].copy()})
    del numbers
    tracemalloc.start()
    try:
        found = inspect(paths, sample=EVERYTHING)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.tensors[0].sampled == 2**22
    assert peak < 4 * 2**20


@given(st.integers(1, 10**7), st.integers(1, 10**6))
def test_places_are_in_order_apart_within_the_tensor_and_as_many_as_asked(
    size: int, sample: int
) -> None:
    found = list(places(size, sample))
    ends = [place.start + place.count for place in found]
    assert all(end <= place.start for end, place in zip(ends, found[1:], strict=False))
    assert ends[-1] <= size
    total = sum(place.count for place in found)
    assert total == size if size <= sample else sample - max(1, sample // PLACES) < total <= sample
