"""Builds: resumed where they stopped, shared by whoever makes the same, bounded in memory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_halo.errors import WeightsError
from arc_halo.formats.safetensors import arc_halo_weight_formats
from arc_halo.store import builds
from arc_halo.tensors.digests import tensor_digest, weights_root
from arc_halo.transfer.importing import import_weights
from arc_halo.transfer.sources import DigestCache, source_facts
from arc_halo.types import TensorInfo
from arc_halo.weights.building import Recipe, build
from arc_halo.weights.reading import read_array
from arc_halo.weights.store import WeightStore

(SAFETENSORS,) = arc_halo_weight_formats()
SIZE = 700_000
INFOS = [TensorInfo(name=f"t{i}", dtype="U8", shape=(SIZE,), size_bytes=SIZE) for i in range(6)]


def raw(info: TensorInfo) -> bytes:
    return hashlib.shake_256(info.name.encode()).digest(info.size_bytes)


def recipe(text: str = "r", **fields: Any) -> Recipe:
    key = hashlib.sha256(text.encode()).digest()
    return Recipe(purpose="write", key=key, recipe={"is": text}, **fields)


ROOT = weights_root((i.name, tensor_digest(i.dtype, i.shape, raw(i))) for i in INFOS)


class Interrupted(Exception):
    """Stands for whatever kills a build."""


def stops_at(name: str, after_bytes: int = 0) -> Callable[[TensorInfo], Iterator[bytes]]:
    def produce(info: TensorInfo) -> Iterator[bytes]:
        if info.name == name:
            yield raw(info)[:after_bytes]
            raise Interrupted
        yield raw(info)

    return produce


@pytest.mark.parametrize("after_bytes", [0, 300_000, SIZE])
def test_an_interrupted_build_goes_on_where_it_stopped(
    make_store: Callable[..., WeightStore], sql: Callable[..., Any], after_bytes: int
) -> None:
    store = make_store(threads=1)
    with pytest.raises(Interrupted):
        build(store, recipe(), INFOS, stops_at("t3", after_bytes))
    assert sql("SELECT status FROM weight_builds") == [("building",)]
    assert sql("SELECT count(*) FROM weight_sets WHERE root IS NOT NULL") == [(0,)]
    done = {name for (name,) in sql("SELECT tensor_name FROM weight_set_tensors")}
    assert {"t0", "t1", "t2"} <= done
    assert "t3" not in done

    made: list[str] = []

    def produce(info: TensorInfo) -> list[bytes]:
        made.append(info.name)
        return [raw(info)]

    advanced: list[int] = []
    built = build(store, recipe(), INFOS, produce, advance=advanced.append)
    assert set(made) == {info.name for info in INFOS} - done
    assert (built.root, built.tensor_count, built.tensors_built) == (ROOT, 6, len(made))
    assert sum(advanced) == built.size_bytes == 6 * SIZE
    assert sql("SELECT count(*) FROM weight_sets") == [(1,)]
    assert sql("SELECT tensor_name, ordinal FROM weight_set_tensors ORDER BY ordinal") == [
        (info.name, ordinal) for ordinal, info in enumerate(INFOS)
    ]


def test_a_build_goes_on_from_a_file_in_another_order(
    make_store: Callable[..., WeightStore], sql: Callable[..., Any]
) -> None:
    store = make_store(threads=1)
    with pytest.raises(Interrupted):
        build(store, recipe(), INFOS, stops_at("t3"))
    built = build(store, recipe(), INFOS[::-1], lambda info: [raw(info)])
    assert (built.root, built.tensor_count) == (ROOT, 6)
    rows = sql("SELECT tensor_name, ordinal FROM weight_set_tensors ORDER BY ordinal")
    assert [ordinal for _, ordinal in rows] == list(range(6))
    assert [name for name, _ in rows] == ["t0", "t1", "t2", "t5", "t4", "t3"]


def test_builds_of_one_recipe_in_two_orders_at_once_end_in_one_set(
    store: WeightStore, sql: Callable[..., Any]
) -> None:
    ready = threading.Barrier(2)

    def produce(info: TensorInfo) -> list[bytes]:
        if info.name in ("t0", "t5") and not ready.broken:
            with suppress(threading.BrokenBarrierError):
                ready.wait(2)
        return [raw(info)]

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(build, store, recipe(), i, produce) for i in (INFOS, INFOS[::-1])]
        assert {run.result(60).root for run in runs} == {ROOT}
    assert sql("SELECT status FROM weight_builds") == [("complete",)]
    assert sql("SELECT count(*) FROM weight_sets") == [(1,)]
    assert sql("SELECT ordinal FROM weight_set_tensors ORDER BY 1") == [(i,) for i in range(6)]


def test_a_finished_build_is_found_and_nothing_is_produced(store: WeightStore) -> None:
    first = build(store, recipe(), INFOS, lambda info: [raw(info)])
    again = build(store, recipe(), INFOS, stops_at("t0"))
    assert (again.root, again.tensors_built, again.new_bytes) == (first.root, 0, 0)


def test_two_recipes_with_one_result_share_the_weights(
    store: WeightStore, sql: Callable[..., Any]
) -> None:
    one = build(store, recipe("one"), INFOS, lambda info: [raw(info)])
    two = build(store, recipe("two"), INFOS, lambda info: [raw(info)])
    assert one.root == two.root == ROOT
    assert two.new_bytes == 0
    assert sql("SELECT count(*) FROM weight_sets") == [(1,)]
    assert sql("SELECT count(DISTINCT weight_set_id) FROM weight_builds") == [(1,)]


def test_builds_of_one_recipe_at_once_end_in_one_set(
    store: WeightStore, sql: Callable[..., Any]
) -> None:
    ready = threading.Barrier(2)

    def produce(info: TensorInfo) -> list[bytes]:
        if info.name == "t0":
            ready.wait(30)
        return [raw(info)]

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(build, store, recipe(), INFOS, produce) for _ in range(2)]
        assert {run.result(60).root for run in runs} == {ROOT}
    assert sql("SELECT status FROM weight_builds") == [("complete",)]
    assert sql("SELECT count(*) FROM weight_set_tensors") == [(6,)]
    assert sql("SELECT count(*) FROM weight_sets") == [(1,)]


def test_many_builders_at_once_do_not_block_one_another(
    make_store: Callable[..., WeightStore], sql: Callable[..., Any]
) -> None:
    small = [TensorInfo(name=f"t{i}", dtype="U8", shape=(9,), size_bytes=9) for i in range(4)]
    store = make_store(threads=1)
    for number in range(15):
        ready = threading.Barrier(4)

        def run(ready: threading.Barrier = ready, number: int = number) -> bytes:
            ready.wait(30)
            return build(store, recipe(str(number)), small, lambda info: [raw(info)]).root

        with ThreadPoolExecutor(4) as pool:
            assert len({run.result(60) for run in [pool.submit(run) for _ in range(4)]}) == 1
    assert sql("SELECT DISTINCT status FROM weight_builds") == [("complete",)]


def test_of_two_builds_at_once_that_differ_the_first_one_counts(store: WeightStore) -> None:
    """A strategy that rolls dice gives every program other bits for one recipe."""
    started, finished = threading.Event(), threading.Event()

    def slow(info: TensorInfo) -> Iterator[bytes]:
        started.set()
        finished.wait(30)
        yield bytes(info.size_bytes)

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(build, store, recipe(), INFOS[:1], slow)
        started.wait(30)
        first = build(store, recipe(), INFOS[:1], lambda info: [raw(info)])
        finished.set()
        assert second.result(60).root == first.root


def test_the_first_failure_stops_the_other_threads(make_store: Callable[..., WeightStore]) -> None:
    produced = 0
    failed = threading.Event()

    def produce(info: TensorInfo) -> Iterator[bytes]:
        nonlocal produced
        if info.name == "t0":
            yield raw(info)
            failed.set()
            raise Interrupted
        failed.wait(30)
        for piece in range(0, SIZE, 1000):
            produced += 1
            yield raw(info)[piece : piece + 1000]

    many = [TensorInfo(name=f"t{i}", dtype="U8", shape=(SIZE,), size_bytes=SIZE) for i in range(40)]
    with pytest.raises(Interrupted):
        build(make_store(memory_bytes=1, threads=2), recipe(), many, produce)
    assert produced < 10 * SIZE // 1000


@pytest.mark.parametrize("change", [-1, 1])
def test_bytes_that_do_not_fill_the_tensor_are_refused(
    store: WeightStore, sql: Callable[..., Any], change: int
) -> None:
    def produce(info: TensorInfo) -> list[bytes]:
        return [(raw(info) + b"x")[: SIZE + change]]

    with pytest.raises(WeightsError):
        build(store, recipe(), INFOS[:1], produce)
    assert sql("SELECT count(*) FROM tensor_metadata") == [(0,)]


def test_weights_other_than_expected_are_refused_and_the_build_is_forgotten(
    store: WeightStore, sql: Callable[..., Any]
) -> None:
    with pytest.raises(WeightsError) as caught:
        build(store, recipe(expected=bytes(32)), INFOS, lambda info: [raw(info)])
    assert caught.value.error_code == "AH063"
    assert sql("SELECT count(*) FROM weight_builds") == [(0,)]
    assert sql("SELECT count(*) FROM weight_sets WHERE root IS NOT NULL") == [(0,)]


@pytest.mark.parametrize("change", ["a byte", "a name", "one less", "shorter"])
def test_a_file_that_changed_after_it_was_digested_is_not_imported(
    store: WeightStore,
    write_file: Callable[..., Path],
    sql: Callable[..., Any],
    change: str,
) -> None:
    contents = {"a": ("U8", (9,), b"123456789"), "b": ("U8", (2,), b"ab")}
    path = write_file(contents)
    root = source_facts(path, SAFETENSORS, DigestCache(None)).root
    changed = {
        "a byte": {**contents, "a": ("U8", (9,), b"12345678x")},
        "a name": {"a": contents["a"], "c": contents["b"]},
        "one less": {"a": contents["a"]},
        "shorter": {**contents, "b": ("U8", (1,), b"a")},
    }
    write_file(changed[change])
    with pytest.raises(WeightsError) as caught:
        import_weights(store, path, SAFETENSORS, root, label="m")
    assert caught.value.error_code == "AH063"
    assert sql("SELECT count(*) FROM weight_sets WHERE root IS NOT NULL") == [(0,)]
    write_file(contents)
    assert import_weights(store, path, SAFETENSORS, root, label="m").root == root


def test_a_build_resumed_from_another_file_is_still_checked_as_a_whole(
    make_store: Callable[..., WeightStore], sql: Callable[..., Any]
) -> None:
    store = make_store(threads=1)
    with pytest.raises(Interrupted):
        build(store, recipe(expected=ROOT), INFOS, stops_at("t3"))
    fewer = INFOS[1:]
    with pytest.raises(WeightsError):
        build(store, recipe(expected=bytes(32)), fewer, lambda info: [raw(info)])
    assert sql("SELECT count(*) FROM weight_sets WHERE root IS NOT NULL") == [(0,)]


MEASURE = """
import resource, sys
from pathlib import Path
from arc_halo.formats.safetensors import arc_halo_weight_formats
from arc_halo.plugins import PluginManager
from arc_halo.store import builds
from arc_halo.store.connection import pool
from arc_halo.transfer.exporting import export_weights
from arc_halo.transfer.importing import import_weights
from arc_halo.transfer.sources import DigestCache, source_facts
from arc_halo.weights.store import WeightStore
import numpy, zstandard, ml_dtypes

path, url, memory = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(form,) = arc_halo_weight_formats()
codecs = {name: p.item for name, p in PluginManager().codecs.items()}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

with pool(url, 8) as connections:
    store = WeightStore(pool=connections, codecs=codecs, memory_bytes=memory)
    with connections.connection() as conn:
        conn.execute("SELECT 1")
    before = peak()
    facts = source_facts(path, form, DigestCache(None))
    import_weights(store, path, form, facts.root, label="big")
    with connections.connection() as conn:
        found = builds.sets_by_root(conn, [facts.root])[facts.root]
    export_weights(store, found.id, path.with_name("out.safetensors"), form, metadata={})
    print(peak() - before)
"""


@pytest.mark.parametrize(
    ("size_mib", "memory_mib"),
    [pytest.param(96, 16), pytest.param(300, 64, marks=pytest.mark.campaign)],
)
def test_memory_is_bounded_by_the_setting_and_not_by_the_model(
    database: str, write_file: Callable[..., Path], size_mib: int, memory_mib: int
) -> None:
    size = size_mib * 2**20
    values = np.random.default_rng(1).normal(size=size // 4).astype(np.float32)
    path = write_file({"one": ("F32", (values.size,), values.tobytes())})
    del values
    digests: list[bytes] = []
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), database, str(memory_mib * 2**20)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert int(done.stdout) < memory_mib * 2**20
    for file in (path, path.with_name("out.safetensors")):
        with file.open("rb") as stream:
            stream.seek(-size, os.SEEK_END)
            digests.append(hashlib.file_digest(stream, "sha256").digest())
    assert digests[0] == digests[1]


def test_a_tensor_is_read_into_one_array(store: WeightStore) -> None:
    import tracemalloc

    built = build(store, recipe(), INFOS[:1], lambda info: [raw(info)])
    with store.pool.connection() as conn:
        (row,) = builds.set_tensors(conn, builds.sets_by_root(conn, [built.root])[built.root].id)
    read_array(store, row, row.name)
    tracemalloc.start()
    array = read_array(store, row, row.name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.tobytes() == raw(INFOS[0])
    assert peak < SIZE + 3 * 262144 + 200_000
