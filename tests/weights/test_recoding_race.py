"""Recoding beside readers, imports and collection, and chunks that are each other's bases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_halo.bodies.object import arc_halo_body_stores
from arc_halo.errors import CorruptChunkError
from arc_halo.store import builds
from arc_halo.store.builds import NamedTensor
from arc_halo.store.rows import Pool
from arc_halo.weights import recoding
from arc_halo.weights.bases import Bases
from arc_halo.weights.bodies import open_bodies
from arc_halo.weights.collecting import collect, collect_bodies
from arc_halo.weights.reading import read_pieces
from arc_halo.weights.recoding import KEEP, recode
from arc_halo.weights.store import OpenBodies, WeightStore
from arc_halo.weights.verifying import verify
from tests.weights.sets import made, noise, stored

CHUNK = 262144
SQL = Callable[..., list[tuple[Any, ...]]]


def near(seed: int) -> bytes:
    """A chunk like every other of these: a delta against any of them pays."""
    numbers = np.random.default_rng(seed)
    raw = np.frombuffer(noise("base", CHUNK), np.uint8).copy()
    raw[numbers.integers(0, CHUNK, 300)] += 1
    return raw.tobytes()


def few_values(chunks: int) -> bytes:
    return np.random.default_rng(0).integers(0, 4, CHUNK * chunks).astype(np.uint8).tobytes()


def set_id(store: WeightStore, root: bytes) -> int:
    with store.pool.connection() as conn:
        return builds.sets_by_root(conn, [root])[root].id


def row_of(store: WeightStore, root: bytes) -> NamedTensor:
    with store.pool.connection() as conn:
        (row,) = builds.set_tensors(conn, set_id(store, root))
    return row


@pytest.fixture
def bodies(open_pool: Pool, tmp_path: Path) -> Iterator[OpenBodies | None]:
    (descriptor,) = arc_halo_body_stores()
    (tmp_path / "bodies").mkdir()
    with open_bodies(open_pool, descriptor, (tmp_path / "bodies").as_uri()) as opened:
        yield opened


@pytest.mark.parametrize("second", [near(3), near(1)], ids=["chain", "circle"])
def test_deltas_stay_one_deep_where_chunks_are_each_other_s_bases(
    store: WeightStore, sql: SQL, second: bytes
) -> None:
    base, tuned = {"t": near(2) + second}, {"t": near(1) + near(2)}
    base_root, root = made(store, base), made(store, tuned)
    done = recode(store, codec="auto", weight_set_id=set_id(store, root), delta_from=base_root)
    assert done.changed == sql("SELECT count(*) FROM chunk_bodies WHERE codec = 'delta'")[0][0] > 0
    assert (stored(store, root), stored(store, base_root)) == (tuned, base)
    assert verify(store).findings == []


def test_auto_keeps_a_delta_that_is_the_smallest(store: WeightStore, sql: SQL) -> None:
    base = made(store, {"t": near(1)})
    made(store, {"t": near(2)}, delta_from=base)
    before = sql("SELECT digest, codec, body FROM chunk_bodies ORDER BY digest")
    assert recode(store, codec="auto").changed == 0
    assert sql("SELECT digest, codec, body FROM chunk_bodies ORDER BY digest") == before
    assert recode(store, codec="zstd").changed == 1


def test_a_base_that_no_tensor_has_is_moved_too(
    make_store: Callable[..., WeightStore], bodies: OpenBodies, sql: SQL
) -> None:
    outside = make_store(bodies=bodies)
    base = made(outside, {"t": near(1)})
    raw = {"t": near(2)}
    root = made(outside, raw, delta_from=base)
    sql("DELETE FROM weight_sets WHERE id = %s RETURNING 1", set_id(outside, base))
    sql("DELETE FROM tensor_metadata WHERE id NOT IN (SELECT tensor_id FROM weight_set_tensors)"
        " RETURNING 1")  # fmt: skip
    assert recode(outside, codec=KEEP, into_database=True).changed == 2
    assert sql("SELECT count(*) FROM chunk_bodies WHERE store_id IS NOT NULL") == [(0,)]
    assert stored(make_store(), root) == raw


def test_a_read_goes_on_while_bodies_elsewhere_are_written_over(
    make_store: Callable[..., WeightStore], bodies: OpenBodies
) -> None:
    store = make_store(bodies=bodies)
    raw = few_values(20)
    pieces = read_pieces(store, row_of(store, made(store, {"t": raw}, codec="zstd")), "t")
    found = bytes(next(pieces))
    assert recode(store, codec="planes").changed > 0
    assert found + b"".join(map(bytes, pieces)) == raw


def test_a_read_goes_on_while_bodies_move_into_the_database(
    make_store: Callable[..., WeightStore], bodies: OpenBodies
) -> None:
    store = make_store(bodies=bodies)
    raw = few_values(20)
    pieces = read_pieces(store, row_of(store, made(store, {"t": raw})), "t")
    found = bytes(next(pieces))
    recode(store, codec=KEEP, into_database=True)
    assert collect_bodies(store, bodies.bodies, bodies.store_id, grace=timedelta(0)) == 20
    assert found + b"".join(map(bytes, pieces)) == raw


def test_verify_finds_nothing_while_bodies_are_written_over(
    make_store: Callable[..., WeightStore], bodies: OpenBodies
) -> None:
    store = make_store(bodies=bodies)
    made(store, {"t": few_values(20)})
    until = time.monotonic() + 3

    def go_on() -> None:
        while time.monotonic() < until:
            for codec in ("planes", "zstd"):
                recode(store, codec=codec)

    recoding_on = threading.Thread(target=go_on)
    recoding_on.start()
    try:
        while time.monotonic() < until:
            assert verify(store).findings == []
    finally:
        recoding_on.join()


def test_an_import_whose_base_becomes_a_delta_takes_that_one_s_base(
    store: WeightStore, sql: SQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = made(store, {"t": near(1)}), made(store, {"t": near(2)})
    read = Bases.read

    def overtaken(self: Bases, *arguments: Any) -> Any:
        found = read(self, *arguments)
        monkeypatch.setattr(Bases, "read", read)
        recode(store, codec="auto", weight_set_id=set_id(store, second), delta_from=first)
        return found

    monkeypatch.setattr(Bases, "read", overtaken)
    raw = {"t": near(3)}
    assert stored(store, made(store, raw, delta_from=second)) == raw
    assert sql("SELECT count(DISTINCT base_digest), count(base_digest) FROM chunk_bodies") == [
        (1, 2)
    ]


def test_what_an_import_has_just_taken_as_a_base_becomes_no_delta(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = made(store, {"t": near(1)}), made(store, {"t": near(2)})
    write, raw = recoding._write, {"t": near(3)}
    roots: list[bytes] = []

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(recoding, "_write", write)
        roots.append(made(store, raw, delta_from=second))
        write(*arguments)

    monkeypatch.setattr(recoding, "_write", overtaken)
    done = recode(store, codec="auto", weight_set_id=set_id(store, second), delta_from=first)
    assert (done.chunks, done.changed) == (1, 0)
    assert stored(store, roots[0]) == raw
    assert verify(store).findings == []


def test_what_is_collected_meanwhile_is_passed_over(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch, sql: SQL
) -> None:
    made(store, {"t": noise("a", CHUNK * 3)})
    kept = made(store, {"t": noise("b", CHUNK * 3)})
    page = recoding.recoding.page

    def overtaken(*arguments: Any) -> Any:
        found = page(*arguments)
        sql("DELETE FROM weight_sets WHERE root <> %s RETURNING 1", kept)
        collect(store, grace=timedelta(0))
        return found

    sql("UPDATE weight_builds SET heartbeat_at = now() + interval '1 hour' WHERE weight_set_id ="
        " (SELECT id FROM weight_sets WHERE root = %s) RETURNING 1", kept)  # fmt: skip
    monkeypatch.setattr(recoding.recoding, "page", overtaken)
    assert recode(store, codec="auto").chunks == 3


def test_what_cannot_be_recoded_is_named(
    store: WeightStore, tamper: Callable[..., int], sql: SQL
) -> None:
    root = made(store, {"one": noise("a", CHUNK * 3)})
    tamper(
        "UPDATE chunk_bodies SET body = set_byte(body, 0, get_byte(body, 0) # 1) WHERE digest ="
        " (SELECT chunk_digest FROM tensor_data WHERE chunk_index = 1)"
    )
    with pytest.raises(CorruptChunkError, match=r"^tensor 'one': chunk 1 "):
        recode(store, codec="auto", weight_set_id=set_id(store, root))
    ((digest,),) = sql("SELECT chunk_digest FROM tensor_data WHERE chunk_index = 1")
    with pytest.raises(CorruptChunkError, match=rf"^{digest.hex()[:16]}…: "):
        recode(store, codec="auto")
