"""Captures of activations without torch: listed, found by their ids, told in figures, deleted."""

from __future__ import annotations

from datetime import timedelta

import ml_dtypes
import numpy as np
import pytest

from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.inference.activation_captures import statistics
from arc_halo.weights.collecting import collect
from tests.inference.stored_activations import ROOT, key_of, put, values


@pytest.fixture
def store(halo):
    return halo.project.weights


def test_what_one_model_gave_for_one_input_is_one_capture(halo, store):
    for name in ("layers.0", "layers.1"):
        put(store, [1, 2, 3, 4], values(1), name=name)
    put(store, [1, 2, 3, 4], values(1)[:, [3]], name="layers.1", selection={"positions": [3]})
    put(store, [5], values(2), structure=b"t" * 32)
    newest, first = halo.inference.activation_captures()
    assert first.id == key_of([1, 2, 3, 4]).capture_id
    assert (first.layer_count, first.hit_count) == (2, 0)
    assert first.size_bytes == 2 * values(1).nbytes + 32
    assert newest.id == key_of([5], structure=b"t" * 32).capture_id
    assert halo.inference.activation_captures(limit=1) == [newest]
    assert halo.inference.activation_captures(limit=0) == []


def test_captures_are_listed_by_the_names_and_the_root_of_their_model(halo, store):
    halo.models.create_model(model_name="story", model_type="transformer", architecture_config={})
    halo.tensors.write("story@1.0.0", {"w": np.zeros(3, np.float32)})
    root = halo.models.get("story@1.0.0").root
    put(store, [1], values(1), root=root)
    put(store, [1], values(1))
    for named in ("story", "story@1.0.0", root.hex()[:6], f"sha256:{root.hex()}"):
        (found,) = halo.inference.activation_captures(model=named)
        assert (found.weights_root, found.model) == (root, "story@1.0.0")
    for named in ("", "sto", "story@2", root.hex()[:5], "0" * 64):
        assert halo.inference.activation_captures(model=named) == []
    assert {each.model for each in halo.inference.activation_captures()} == {"story@1.0.0", ""}


def test_a_capture_is_read_by_its_id_and_counts_no_hit(halo, store):
    put(store, [1, 2, 3, 4], values(1))
    id = key_of([1, 2, 3, 4]).capture_id
    for named in (id, str(id), id.hex[:6], str(id).upper()):
        found = halo.inference.activation_capture(named)
        (layer,) = found.layers
        assert np.array_equal(layer.array(), values(1))
    assert (layer.name, layer.dtype, layer.shape) == ("layers.0", "F32", (1, 4, 8))
    assert (found.about.id, found.about.hit_count, found.about.weights_root) == (id, 0, ROOT)
    for named in ("nobody", id.hex[:5], "\0", "0" * 32):
        with pytest.raises(NotFoundError, match="no capture of activations"):
            halo.inference.activation_capture(named)


def test_the_beginning_of_several_ids_is_refused_with_the_ids(halo, store, sql):
    ids = [key_of([each]).capture_id for each in range(20_000)]
    first, second = clashing(ids)
    for token in (ids.index(first), ids.index(second)):
        put(store, [token], values(1))
    with pytest.raises(InvalidInputError, match=f"{min(first, second)}, {max(first, second)}"):
        halo.inference.activation_capture(first.hex[:6])


def clashing(ids):
    """Two ids that begin alike: among 20,000 of 24 bits there are always some."""
    seen = {}
    for each in ids:
        if (other := seen.setdefault(each.hex[:6], each)) != each:
            return other, each
    raise AssertionError


def test_captures_are_deleted_all_or_none_and_their_space_is_given_back(halo, store):
    for token in (1, 2):
        put(store, [token], values(token))
    ids = [key_of([token]).capture_id for token in (1, 2)]
    with pytest.raises(NotFoundError):
        halo.inference.delete_activations(ids[0], "nobody")
    assert len(halo.inference.activation_captures()) == 2
    halo.inference.delete_activations(ids[0], str(ids[0]))
    assert [each.id for each in halo.inference.activation_captures()] == [ids[1]]
    assert collect(store, grace=timedelta(0)).tensors == 1
    assert np.array_equal(halo.inference.activation_capture(ids[1]).layers[0].array(), values(2))


def test_what_is_over_is_not_listed(halo, store):
    put(store, [1], values(1), ttl=timedelta(microseconds=1))
    assert halo.inference.activation_captures() == []
    with pytest.raises(NotFoundError):
        halo.inference.activation_capture(key_of([1]).capture_id)


def test_what_went_and_was_collected_in_the_meantime_is_told(halo, store):
    put(store, [1], values(1))
    found = halo.inference.activation_capture(key_of([1]).capture_id)
    halo.inference.delete_activations(found.about.id)
    collect(store, grace=timedelta(0))
    with pytest.raises(NotFoundError, match="not there any more"):
        found.layers[0].array()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
def test_figures_are_those_of_all_values(dtype):
    array = (100 * np.random.default_rng(3).normal(size=(3, 700_001))).clip(-128, 127).astype(dtype)
    wide, found = array.astype(np.float64), statistics(array)
    assert found.mean == pytest.approx(wide.mean(), rel=1e-9, abs=1e-9)
    assert found.std == pytest.approx(wide.std(), rel=1e-12)
    assert (found.min, found.max) == (wide.min(), wide.max())
    assert found.norm == pytest.approx(np.linalg.norm(wide.ravel()), rel=1e-12)


def test_figures_of_what_is_not_finite_say_so():
    found = statistics(np.array([1.0, np.nan, -np.inf], np.float32))
    assert all(np.isnan([found.mean, found.std, found.min, found.max, found.norm]))
    assert statistics(np.array([1.0, np.inf])).max == np.inf
    assert np.isnan(statistics(np.zeros((0, 4))).mean)
    assert statistics(np.array([3 + 4j])).norm == 5.0
