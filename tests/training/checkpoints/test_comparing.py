"""Two checkpoints compared: what differs is measured, what is equal is never read."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from arc_halo.training.checkpoints import comparing, distances


def saved(checkpoints, step, model, **parts):
    return checkpoints.save(step=step, model=model, **parts).checkpoint


def compared(store, one, two):
    sides = [comparing.look(store, each) for each in (one, two)]
    told = []
    found = comparing.compare(store, *sides, advance=told.append)
    assert sum(told) == comparing.bytes_to_read(*sides)
    return found


def test_every_change_is_measured_against_numpy(checkpoints, store):
    numbers = np.random.default_rng(0)
    first = {
        "same": numbers.normal(size=100_000).astype(np.float32),
        "part": numbers.normal(size=200_000).astype(np.float32),
        "half": numbers.normal(size=1000).astype(ml_dtypes.bfloat16),
        "ids": np.arange(5),
        "flags": np.array([True, False]),
        "gone": np.ones(4, np.float32),
        "shape": np.ones((2, 3), np.float32),
        "none": np.zeros((0, 3), np.int8),
    }
    second = {name: array.copy() for name, array in first.items() if name != "gone"}
    second["part"][:10] += 1
    second["half"] = (second["half"].astype(np.float32) * 1.5).astype(ml_dtypes.bfloat16)
    second["ids"] -= 2
    second["flags"][:] = True
    second["shape"] = np.ones((3, 2), np.float32)
    second["new"] = np.ones(9)
    found = compared(
        store, saved(checkpoints, 1, first, rng=False), saved(checkpoints, 2, second, rng=False)
    )
    by_name = {each.name: each for each in found.tensors}
    assert {name: each.change for name, each in by_name.items()} == {
        "part": "changed",
        "half": "changed",
        "ids": "changed",
        "flags": "changed",
        "gone": "removed",
        "new": "added",
        "shape": "reshaped",
    }
    for name in ("part", "half", "ids", "flags"):
        one, two = first[name].astype(np.float64), second[name].astype(np.float64)
        far = by_name[name].distance
        assert far.norm == pytest.approx(np.linalg.norm(two - one))
        assert far.relative == pytest.approx(np.linalg.norm(two - one) / np.linalg.norm(one))
        assert far.largest == np.abs(two - one).max()
        assert far.changed_share == np.count_nonzero(one != two) / one.size
    assert (found.equal_tensors, found.equal_bytes) == (2, 400_000)
    assert by_name["part"].shared_bytes == 800_000 - 262_144
    assert found.shared_bytes == 400_000 + 800_000 - 262_144 + 24
    assert found.size_bytes == sum(array.nbytes for array in second.values())


def test_states_and_values_are_compared_and_generators_are_no_numbers(checkpoints, store):
    def parts(learning_rate, moment):
        return {
            "optimizer": {"state": {0: {"m": moment}}, "groups": [{"lr": learning_rate}]},
            "scheduler": {"last": learning_rate, "kept": 1},
        }

    model = {"w": np.zeros(3)}
    np.random.seed(3)  # the next draw makes a new block of numbers, which is what is compared
    one = saved(checkpoints, 1, model, **parts(0.1, np.zeros(4)))
    np.random.random(9)
    two = saved(checkpoints, 2, model, **parts(0.05, np.array([0, 3.0, 4, 0])), extra={"note": "x"})
    found = compared(store, one, two)
    (moment,) = [each for each in found.tensors if each.part == "optimizer"]
    assert (moment.name, moment.distance.norm, moment.distance.relative) == (
        "['state'][0]['m']",
        5,
        None,
    )
    values = {(each.part, each.path): (each.first, each.second) for each in found.values}
    assert (
        values.items()
        >= {
            ("optimizer", "['groups'][0]['lr']"): ("0.1", "0.05"),
            ("scheduler", "['last']"): ("0.1", "0.05"),
            ("extra", "['note']"): (None, "'x'"),
        }.items()
    )
    assert ("scheduler", "['kept']") not in values
    generators = [each for each in found.tensors if each.part == "rng"]
    assert generators
    assert not any(each.distance for each in generators)


def test_a_checkpoint_is_equal_to_itself_and_nothing_is_read(checkpoints, store, monkeypatch):
    one = saved(checkpoints, 1, {"w": np.arange(9.0)}, optimizer={"m": np.ones(5)})
    monkeypatch.setattr(distances, "StoredTensor", None)
    found = compared(store, one, one)
    assert found.is_equal
    assert found.shared_bytes == found.size_bytes == found.equal_bytes


def test_what_diverged_is_told_and_not_refused(checkpoints, store):
    first, second = np.arange(6.0), np.arange(6.0)
    second[1:4] = np.nan, np.inf, 5
    first[5] = np.nan
    found = compared(
        store,
        saved(checkpoints, 1, {"w": first, "big": np.full(3, -1e300)}, rng=False),
        saved(checkpoints, 2, {"w": second, "big": np.full(3, 1e300)}, rng=False),
    )
    big, far = (each.distance for each in found.tensors)
    assert (far.norm, far.largest, far.not_finite, far.changed_share) == (2, 2, 2, 4 / 6)
    assert (big.norm, big.largest) == (None, 2e300)


def test_the_sign_of_zero_is_a_change_of_bits(checkpoints, store):
    found = compared(
        store,
        saved(checkpoints, 1, {"w": np.zeros(4)}, rng=False),
        saved(checkpoints, 2, {"w": -np.zeros(4)}, rng=False),
    )
    (only,) = found.tensors
    assert (only.distance.norm, only.distance.changed_share) == (0, 1)
