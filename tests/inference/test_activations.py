"""The activation cache without torch: keys, budgets and evictions, many at once, and damage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
from psycopg import errors

from arc_halo.errors import CorruptChunkError, InvalidInputError
from arc_halo.inference.activation_lookup import load
from arc_halo.inference.inputs import given_parts as parts
from arc_halo.plugins import PluginManager
from arc_halo.store import activations as store_of
from arc_halo.store.connection import connect
from arc_halo.weights.store import WeightStore
from tests.inference.stored_activations import NAME, ROOT, STRUCTURE, put, values


@pytest.fixture
def store(open_pool):
    codecs = {name: provided.item for name, provided in PluginManager().codecs.items()}
    return WeightStore(pool=open_pool, codecs=codecs)


def test_what_was_put_is_loaded_by_its_root_alone(store):
    assert put(store, [1, 2, 3, 4], values(1)) == (1, 0)
    assert put(store, [1, 2, 3, 4], values(2)) == (0, 0)
    (found,) = load(store, [ROOT], parts([1, 2, 3, 4])).values()
    assert np.array_equal(found, values(1))
    assert load(store, [b"q" * 32], parts([1, 2, 3, 4])) == {}
    assert load(store, [ROOT], parts([1, 2, 3])) == {}
    assert load(store, [ROOT], parts([1, 2, 3, 4]), names=["layers.1*"]) == {}


def test_a_root_of_several_structures_is_not_enough(store):
    for structure in (STRUCTURE, b"t" * 32):
        put(store, [1, 2, 3, 4], values(1), structure=structure)
    with pytest.raises(InvalidInputError, match="several models"):
        load(store, [ROOT], parts([1, 2, 3, 4]))


def test_a_selection_of_thousands_of_positions_has_its_place(store):
    positions = list(range(0, 20_000, 2))
    assert put(store, [1], values(1), selection={"positions": positions}) == (1, 0)
    assert put(store, [1], values(1), selection={"positions": positions[1:]}) == (1, 0)
    assert put(store, [1], values(1), selection={"positions": positions}) == (0, 0)


def test_the_exact_selection_is_taken_before_a_wider_one(store):
    ids = [1, 2, 3, 4]
    put(store, ids, values(1))
    put(store, ids, values(2)[:, [1]], selection={"positions": [1]})
    (exact,) = load(store, [ROOT], parts(ids), positions=1).values()
    assert np.array_equal(exact, values(2)[:, [1]])
    (cut,) = load(store, [ROOT], parts(ids), positions=2).values()
    assert np.array_equal(cut, values(1)[:, [2]])


def test_the_budget_is_kept_while_many_write_and_read(store, database):
    budget = 5 * values(0).nbytes

    def work(seed):
        rng = np.random.default_rng(seed)
        totals = []
        with connect(database) as conn:
            for _ in range(12):
                ids = [int(rng.integers(0, 12))] * 4
                put(store, ids, values(ids[0]), budget=budget)
                totals.append(store_of.usage(conn).size_bytes)
                for array in load(store, [ROOT], parts([int(rng.integers(0, 12))] * 4)).values():
                    assert any(np.array_equal(array, values(each)) for each in range(12))
        return totals

    with ThreadPoolExecutor(3) as threads:
        totals = [total for found in threads.map(work, range(3)) for total in found]
    assert max(totals) <= budget
    assert max(totals) == budget


def test_a_reader_keeps_what_a_writer_would_have_taken(store, sql):
    for seed in range(3):
        put(store, [seed] * 4, values(seed))
    load(store, [ROOT], parts([0] * 4))
    put(store, [3] * 4, values(3), budget=2 * values(0).nbytes)
    there = [bool(load(store, [ROOT], parts([seed] * 4))) for seed in range(4)]
    assert there == [True, False, False, True]
    assert sql("SELECT hit_count FROM activation_cache ORDER BY id") == [(2,), (1,)]


def test_what_is_over_makes_room_first(store):
    put(store, [0] * 4, values(0))
    put(store, [1] * 4, values(1), ttl=timedelta(microseconds=1))
    assert put(store, [2] * 4, values(2), budget=2 * values(0).nbytes) == (1, 1)
    assert load(store, [ROOT], parts([0] * 4)) != {}


def test_damage_is_told_and_not_given_out(store, sql):
    put(store, [1] * 4, values(1))
    sql(
        "UPDATE chunk_bodies SET body = set_byte(body, octet_length(body) - 1,"
        " (get_byte(body, octet_length(body) - 1) + 1) %% 256)"
    )
    with pytest.raises(CorruptChunkError, match=NAME):
        load(store, [ROOT], parts([1] * 4))


def test_the_tensor_of_an_entry_cannot_be_deleted(store, sql):
    put(store, [1] * 4, values(1))
    sql("DELETE FROM weight_set_tensors")
    with pytest.raises(errors.ForeignKeyViolation):
        sql("DELETE FROM tensor_metadata")
