"""Deltas, and chunks moved to other codecs: smaller or not, the weights stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from arc_halo.bodies.object import arc_halo_body_stores
from arc_halo.errors import BodyStoreError, CorruptChunkError, MissingChunkError
from arc_halo.plugins import PluginManager
from arc_halo.store import builds
from arc_halo.store.rows import Pool
from arc_halo.tensors import dtypes
from arc_halo.types import TensorInfo
from arc_halo.weights.bodies import open_bodies
from arc_halo.weights.building import Built, Recipe, build
from arc_halo.weights.reading import read_arrays
from arc_halo.weights.recoding import KEEP, recode
from arc_halo.weights.store import WeightStore

Arrays = dict[str, np.ndarray[Any, Any]]
RNG = np.random.default_rng(3)


def weights(scale: float = 0.02) -> Arrays:
    return {
        "layer": RNG.normal(0, scale, (700, 600)).astype(ml_dtypes.bfloat16),
        "norm": RNG.normal(1, scale, 40_000).astype(np.float32),
        "ids": np.arange(30_000, dtype=np.int64),
        "small": np.ones(5, np.float32),
    }


def tuned(base: Arrays) -> Arrays:
    """A few small steps away."""
    layer = base["layer"].astype(np.float32)
    layer += RNG.normal(0, 1e-5, layer.shape).astype(np.float32)
    return {
        **base,
        "layer": layer.astype(ml_dtypes.bfloat16),
        "norm": base["norm"] * np.float32(1.0001),
    }


BASE = weights()
TUNED = tuned(BASE)


def write(store: WeightStore, key: str, arrays: Arrays, **fields: Any) -> Built:
    infos = [
        TensorInfo(name=n, dtype=dtypes.name_of(a.dtype), shape=a.shape, size_bytes=a.nbytes)
        for n, a in arrays.items()
    ]
    recipe = Recipe(purpose="write", key=key.encode().ljust(32), recipe={}, **fields)
    return build(store, recipe, infos, lambda info: [dtypes.raw_bytes(arrays[info.name])])


def read(store: WeightStore, built: Built) -> Arrays:
    with store.pool.connection() as conn:
        found = builds.sets_by_root(conn, [built.root])[built.root]
        rows = builds.set_tensors(conn, found.id)
    return read_arrays(store, found.id, rows)


def set_id(store: WeightStore, built: Built) -> int:
    with store.pool.connection() as conn:
        return builds.sets_by_root(conn, [built.root])[built.root].id


def check(store: WeightStore, built: Built, arrays: Arrays) -> None:
    found = read(store, built)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def codecs(sql: Callable[..., Any]) -> dict[str, int]:
    return dict(sql("SELECT codec, count(*) FROM chunk_bodies GROUP BY codec"))


def test_each_chunk_gets_the_codec_that_makes_it_smallest(
    store: WeightStore, sql: Callable[..., Any]
) -> None:
    noise = RNG.bytes(100_000)
    arrays = {**BASE, "noise": np.frombuffer(noise, np.uint8), "zeros": np.zeros(9000, np.int8)}
    check(store, write(store, "base", arrays), arrays)
    kept = dict(
        sql("""SELECT tensor_name, codec FROM weight_set_tensors
               JOIN tensor_data USING (tensor_id) JOIN chunk_bodies ON digest = chunk_digest
               WHERE chunk_index = 0""")
    )
    assert kept["layer"] == "planes"
    assert kept["noise"] == "raw"
    assert kept["zeros"] == "zstd"
    assert sql("SELECT count(*) FROM chunk_bodies WHERE stored_bytes > raw_bytes") == [(0,)]


def test_a_fine_tune_is_kept_as_deltas_and_reads_back(
    store: WeightStore, sql: Callable[..., Any]
) -> None:
    base = write(store, "base", BASE)
    alone = write(store, "alone", {"layer": TUNED["layer"] * 2}).stored_bytes
    built = write(store, "tuned", TUNED, delta_from=base.root)
    check(store, built, TUNED)
    assert codecs(sql)["delta"] > 0
    assert built.stored_bytes < alone / 2
    plain = sql("""SELECT count(*) FROM chunk_bodies AS c JOIN chunk_bodies AS b
                   ON b.digest = c.base_digest WHERE b.base_digest IS NOT NULL""")
    assert plain == [(0,)]


def test_a_fine_tune_of_a_fine_tune_is_a_delta_against_the_first_base(
    store: WeightStore, sql: Callable[..., Any]
) -> None:
    base = write(store, "base", BASE)
    first = write(store, "first", TUNED, delta_from=base.root)
    again = tuned(TUNED)
    second = write(store, "second", again, delta_from=first.root)
    check(store, second, again)
    assert second.stored_bytes < second.new_bytes / 2
    (bases,) = sql("SELECT array_agg(DISTINCT base_digest) FROM chunk_bodies")[0]
    owned = sql(
        "SELECT chunk_digest FROM tensor_data JOIN weight_set_tensors USING (tensor_id)"
        " WHERE weight_set_id = %s",
        set_id(store, base),
    )
    assert {bytes(b) for b in bases if b} <= {bytes(d) for (d,) in owned}


def test_without_a_stored_base_there_is_no_delta(
    store: WeightStore, sql: Callable[..., Any]
) -> None:
    check(store, write(store, "tuned", TUNED, delta_from=bytes(32)), TUNED)
    assert "delta" not in codecs(sql)


def test_a_base_of_another_shape_is_left_alone(store: WeightStore, sql: Callable[..., Any]) -> None:
    base = write(store, "base", {**BASE, "layer": BASE["layer"][:300]})
    check(store, write(store, "tuned", TUNED, delta_from=base.root), TUNED)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_delta_whose_base_is_gone_says_so(
    store: WeightStore, tamper: Callable[..., int], damage: str
) -> None:
    base = write(store, "base", BASE)
    built = write(store, "tuned", TUNED, delta_from=base.root)
    where = "digest IN (SELECT base_digest FROM chunk_bodies)"
    if damage == "missing":
        assert tamper(f"DELETE FROM chunk_bodies WHERE {where}")
    else:
        flip = "set_byte(body, 40, 255 - get_byte(body, 40))"
        assert tamper(f"UPDATE chunk_bodies SET body = {flip} WHERE {where}")
    told = r"tensor '(layer|norm)'.*base"
    with pytest.raises((CorruptChunkError, MissingChunkError), match=told):
        read(store, built)


def test_auto_makes_smaller_what_was_stored_raw(store: WeightStore) -> None:
    built = write(store, "base", BASE, codec="raw")
    done = recode(store, codec="auto")
    assert done.changed > 0
    assert done.after_bytes < done.before_bytes
    check(store, built, BASE)


@pytest.mark.parametrize("codec", ["raw", "zstd", "planes"])
def test_recoding_changes_bodies_and_nothing_else(
    store: WeightStore, sql: Callable[..., Any], codec: str
) -> None:
    base = write(store, "base", BASE)
    built = write(store, "tuned", TUNED, delta_from=base.root)
    before = sql("SELECT digest, raw_bytes FROM chunk_bodies ORDER BY digest")
    told: list[int] = []
    planned = recode(store, codec=codec, dry_run=True)
    done = recode(store, codec=codec, advance=told.append)
    assert (done.chunks, done.changed) == (len(before), planned.changed)
    assert done.changed > 0
    assert sum(told) == sum(size for _, size in before)
    assert sql("SELECT digest, raw_bytes FROM chunk_bodies ORDER BY digest") == before
    assert "delta" not in codecs(sql)
    check(store, built, TUNED)
    check(store, base, BASE)
    assert recode(store, codec=codec).changed == 0


def test_a_model_is_recoded_to_deltas_and_its_base_stays_plain(
    store: WeightStore, sql: Callable[..., Any]
) -> None:
    base, built = write(store, "base", BASE), write(store, "tuned", TUNED)
    done = recode(store, codec="auto", weight_set_id=set_id(store, built), delta_from=base.root)
    assert done.after_bytes < done.before_bytes / 2
    assert codecs(sql)["delta"] == done.changed
    # The other way round nothing can follow: what is a base cannot become a delta.
    back = recode(store, codec="auto", weight_set_id=set_id(store, base), delta_from=built.root)
    assert back.changed == 0
    check(store, built, TUNED)
    check(store, base, BASE)


# Bodies elsewhere.


@pytest.fixture
def outside(store: WeightStore, open_pool: Pool, tmp_path: Path) -> Iterator[WeightStore]:
    (descriptor,) = arc_halo_body_stores()
    (tmp_path / "shelf").mkdir()
    with open_bodies(open_pool, descriptor, (tmp_path / "shelf").as_uri()) as bodies:
        yield replace(store, bodies=bodies)


def test_bodies_in_a_directory_are_read_back_and_are_not_in_the_database(
    outside: WeightStore, sql: Callable[..., Any]
) -> None:
    base = write(outside, "base", BASE)
    built = write(outside, "tuned", TUNED, delta_from=base.root)
    assert sql("SELECT count(*) FROM chunk_bodies WHERE body IS NOT NULL") == [(0,)]
    assert codecs(sql)["delta"] > 0
    check(outside, base, BASE)
    check(outside, built, TUNED)
    assert write(outside, "again", BASE).new_bytes == 0


def test_a_project_that_does_not_name_the_store_is_told(
    outside: WeightStore, store: WeightStore
) -> None:
    built = write(outside, "base", BASE)
    with pytest.raises(BodyStoreError, match="does not name") as caught:
        read(store, built)
    assert "storage.bodies" in (caught.value.hint or "")


def test_bodies_move_out_and_in_again(
    outside: WeightStore, store: WeightStore, sql: Callable[..., Any]
) -> None:
    built = write(store, "base", BASE)
    here = "SELECT count(body), count(*) FROM chunk_bodies"
    ((_, count),) = sql(here)
    assert recode(outside, codec=KEEP).changed == count
    assert sql(here) == [(0, count)]
    check(outside, built, BASE)
    assert recode(outside, codec="zstd").changed > 0
    check(outside, built, BASE)
    assert recode(outside, codec=KEEP).changed == 0
    with pytest.raises(BodyStoreError):
        recode(store, codec=KEEP)
    assert recode(outside, codec=KEEP, into_database=True).changed == count
    assert sql(here) == [(count, count)]
    check(store, built, BASE)


def test_a_body_that_is_gone_from_the_store_is_missed_by_name(
    outside: WeightStore, tmp_path: Path
) -> None:
    built = write(outside, "base", BASE)
    assert outside.bodies is not None
    for page in outside.bodies.bodies.pages(older_than=timedelta(0)):
        outside.bodies.bodies.delete(page)
    with pytest.raises(
        (CorruptChunkError, MissingChunkError), match=r"'layer'.*not in the body store"
    ):
        read(outside, built)


def test_a_store_belongs_to_one_database(
    open_pool: Pool, tmp_path: Path, create_database: Callable[[str], str], template: str
) -> None:
    from arc_halo.store.connection import pool

    (descriptor,) = arc_halo_body_stores()
    url = tmp_path.as_uri()
    with (
        open_bodies(open_pool, descriptor, url) as first,
        open_bodies(open_pool, descriptor, url) as again,
    ):
        assert first is not None
        assert again is not None
        assert first.store_id == again.store_id
    with (
        pool(create_database(template), 2) as other,
        pytest.raises(BodyStoreError, match="another database"),
        open_bodies(other, descriptor, url),
    ):
        pass


def test_postgres_keeps_bodies_in_the_rows(open_pool: Pool) -> None:
    descriptor = PluginManager().body_store("postgres")
    with open_bodies(open_pool, descriptor, None) as bodies:
        assert bodies is None
