"""The KV cache: what was stored comes back, and nothing else ever does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from arc_halo.errors import InvalidInputError, UnknownPluginError
from arc_halo.inference.layouts import KVLayout, LayerShape
from arc_halo.inference.policies import KVPolicy
from arc_halo.store import kv_cache
from arc_halo.store.rows import Pool
from tests.inference.conftest import (
    FULL,
    SLIDING,
    MakeCache,
    between,
    computed,
    same,
    shortened,
    tokens_of,
)

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.mark.parametrize("storage", ["raw", "planes", "zstd"])
@pytest.mark.parametrize("layout", [FULL, SLIDING], ids=["full", "sliding"])
def test_what_was_stored_comes_back_bit_by_bit(
    make_cache: MakeCache, layout: KVLayout, storage: str
) -> None:
    cache = make_cache(layout, storage=storage, block_tokens=64)
    tokens = tokens_of(1, 200)
    layers = computed(layout, tokens, cut=False)
    assert cache.store(tokens, layers)
    assert cache.flush(30)
    assert cache.match(tokens) == 192
    found = cache.load(tokens)
    assert found.length == 192
    assert same(found.layers, shortened(layout, layers, 192))


def test_a_prompt_that_goes_on_differently_has_what_is_common(make_cache: MakeCache) -> None:
    cache = make_cache()
    tokens = tokens_of(2, 100)
    layers = computed(FULL, tokens)
    cache.store(tokens, layers)
    assert cache.flush(30)
    other = tokens[:50] + tokens_of(3, 50)
    found = cache.load(other)
    assert found.length == 48
    assert same(found.layers, shortened(FULL, layers, 48))


@pytest.mark.parametrize("layout", [FULL, SLIDING], ids=["full", "sliding"])
@pytest.mark.parametrize("count", [0, 1, 15])
def test_a_prompt_shorter_than_a_block_has_nothing(
    make_cache: MakeCache, layout: KVLayout, count: int
) -> None:
    cache = make_cache(layout)
    tokens = tokens_of(1, count)
    assert cache.match(tokens) == cache.load(tokens).length == cache.pin(tokens) == 0
    assert cache.load(tokens_of(1, 40), limit=count).length == 0
    if count:
        assert cache.store(tokens, computed(layout, tokens))
    assert cache.flush(30)


def test_a_prefix_may_be_cut_anywhere(make_cache: MakeCache) -> None:
    cache = make_cache()
    tokens = tokens_of(4, 64)
    layers = computed(FULL, tokens)
    cache.store(tokens, layers)
    assert cache.flush(30)
    found = cache.load(tokens, limit=63)
    assert found.length == 63
    assert same(found.layers, shortened(FULL, layers, 63))


def test_a_window_that_is_not_there_is_a_miss(make_cache: MakeCache) -> None:
    """Of a prompt of 128 tokens an engine has the window of the last 39 alone."""
    cache = make_cache(SLIDING)
    tokens = tokens_of(5, 128)
    whole = computed(SLIDING, tokens, cut=False)
    cache.store(tokens, shortened(SLIDING, whole, 128))
    assert cache.flush(30)
    # Blocks 6 and 7 are whole in it: the window that ends with either begins before them.
    assert cache.match(tokens) == 0
    assert cache.load(tokens).length == 0
    cache.store(tokens[:112], shortened(SLIDING, whole, 112))
    cache.store(tokens[:96], shortened(SLIDING, whole, 96))
    assert cache.flush(30)
    found = cache.load(tokens)
    assert found.length == 128
    assert same(found.layers, shortened(SLIDING, whole, 128))


@pytest.mark.parametrize(
    "other",
    [
        {"weights": b"\1" * 32},
        {"adapter": b"poet"},
        {"tenant": "acme"},
        {"block_tokens": 8},
        {"storage": "planes"},
        {"layout": KVLayout(dtype="F32", layers=FULL.layers, engine={"rope_theta": 1e6})},
        {"layout": KVLayout(dtype="BF16", layers=FULL.layers)},
    ],
    ids=["weights", "adapter", "tenant", "block", "storage", "engine", "dtype"],
)
def test_a_cache_of_anything_else_sees_nothing_of_it(
    make_cache: MakeCache, other: dict[str, Any]
) -> None:
    cache = make_cache()
    tokens = tokens_of(6, 64)
    cache.store(tokens, computed(FULL, tokens))
    assert cache.flush(30)
    stranger = make_cache(**other)
    assert stranger.match(tokens) == 0
    assert stranger.load(tokens).length == 0
    assert make_cache().load(tokens).length == 64


def test_a_flipped_bit_is_a_miss_from_there_on(make_cache: MakeCache, sql: Sql) -> None:
    cache = make_cache()
    tokens = tokens_of(7, 96)
    layers = computed(FULL, tokens)
    cache.store(tokens, layers)
    assert cache.flush(30)
    sql(
        "UPDATE kv_cache_bodies SET body = set_byte(body, 100, get_byte(body, 100) # 4)"
        " WHERE block_key = (SELECT block_key FROM kv_cache WHERE block_index = 3)"
    )
    assert cache.match(tokens) == 96  # a hint
    found = cache.load(tokens)
    assert found.length == 48
    assert same(found.layers, shortened(FULL, layers, 48))
    assert cache.flush(30)
    assert sql("SELECT damaged_blocks, hit_tokens FROM kv_cache_counters") == [(1, 48)]


def test_the_bytes_of_another_block_are_not_taken_for_its_own(
    make_cache: MakeCache, sql: Sql
) -> None:
    cache = make_cache()
    tokens = tokens_of(8, 32)
    cache.store(tokens, computed(FULL, tokens))
    assert cache.flush(30)
    sql(
        "UPDATE kv_cache AS own SET digest = other.digest FROM kv_cache AS other"
        " WHERE own.block_index <> other.block_index"
    )
    sql(
        "UPDATE kv_cache_bodies AS own SET body = other.body FROM kv_cache_bodies AS other"
        " WHERE own.block_key <> other.block_key"
    )
    assert cache.load(tokens).length == 0


def test_a_missing_part_is_a_miss(make_cache: MakeCache, sql: Sql) -> None:
    layout = KVLayout(dtype="F32", layers=(LayerShape(heads=4, key_size=256, value_size=256),) * 12)
    cache = make_cache(layout, block_tokens=16)
    tokens = tokens_of(9, 32)
    cache.store(tokens, computed(layout, tokens))
    assert cache.flush(30)
    assert sql("SELECT DISTINCT part_count FROM kv_cache") == [(12,)]
    assert cache.load(tokens).length == 32
    sql("DELETE FROM kv_cache_bodies WHERE part = 1")
    assert cache.load(tokens).length == 0


def test_what_is_there_is_not_written_again(make_cache: MakeCache, sql: Sql) -> None:
    cache = make_cache()
    tokens = tokens_of(10, 64)
    layers = computed(FULL, tokens)
    for _ in range(3):
        cache.store(tokens, layers)
    assert cache.flush(30)
    assert sql("SELECT stored_blocks FROM kv_cache_counters") == [(4,)]
    assert sql("SELECT count(*) FROM kv_cache") == [(4,)]


@pytest.mark.parametrize("layout", [FULL, SLIDING], ids=["full", "sliding"])
def test_arrays_may_begin_in_the_middle_of_what_is_there(
    make_cache: MakeCache, layout: KVLayout
) -> None:
    cache = make_cache(layout)
    tokens = tokens_of(8, 160)
    layers = computed(layout, tokens, cut=False)
    cache.store(tokens, between(layers, 0, 96))
    cache.store(tokens, between(layers, 96, 160))
    assert cache.flush(30)
    found = cache.load(tokens)
    assert found.length == 160
    assert same(found.layers, shortened(layout, layers, 160))


def test_what_would_follow_a_block_that_is_not_there_is_not_kept(
    make_cache: MakeCache, sql: Sql
) -> None:
    cache = make_cache()
    tokens = tokens_of(9, 160)
    cache.store(tokens, between(computed(FULL, tokens), 96, 160))
    assert not cache.flush(30)
    assert sql("SELECT count(*) FROM kv_cache") == [(0,)]
    assert cache.flush(30)  # what was told is told once


def test_integers_of_eight_bits_are_lossy_and_say_by_how_much(
    make_cache: MakeCache, sql: Sql
) -> None:
    cache = make_cache(storage="int8")
    tokens = tokens_of(11, 64)
    layers = computed(FULL, tokens)
    cache.store(tokens, layers)
    assert cache.flush(30)
    found = cache.load(tokens)
    assert found.length == 64
    raw, stored, error = sql(
        "SELECT sum(raw_bytes)::int, sum(stored_bytes)::int, max(error) FROM kv_cache"
    )[0]
    assert stored < 0.5 * raw
    wide = np.concatenate([each.ravel() for layer in layers for each in layer.both])
    back = np.concatenate([each.ravel() for layer in found.layers for each in layer.both])
    measured = np.sqrt(np.square(wide - back).sum() / np.square(wide).sum())
    assert 0.001 < measured < 0.02
    assert error == pytest.approx(measured, rel=0.2)


def test_what_no_integer_could_keep_is_kept_as_it_is(make_cache: MakeCache, sql: Sql) -> None:
    cache = make_cache(storage="int8")
    tokens = tokens_of(12, 16)
    layers = computed(FULL, tokens)
    layers[0].keys[0, 0, 0] = np.inf
    cache.store(tokens, layers)
    assert cache.flush(30)
    assert sql("SELECT codec, error FROM kv_cache") == [("raw", None)]
    assert same(cache.load(tokens).layers, layers)


def test_a_full_queue_refuses_and_does_not_wait(
    make_cache: MakeCache, open_pool: Pool, sql: Sql
) -> None:
    cache = make_cache(queue_bytes=10)
    tokens = tokens_of(13, 32)
    with open_pool.connection() as conn, conn.transaction():
        kv_cache.lock(conn)
        # However large it is, one may wait alone.
        assert cache.store(tokens, computed(FULL, tokens))
        assert not cache.store(tokens, computed(FULL, tokens))
    assert cache.flush(30)
    assert sql("SELECT refused_blocks, stored_blocks FROM kv_cache_counters") == [(2, 2)]


def test_arrays_that_are_not_of_the_layout_are_refused(make_cache: MakeCache) -> None:
    cache = make_cache()
    tokens = tokens_of(14, 32)
    layers = computed(FULL, tokens)
    with pytest.raises(InvalidInputError, match="3 layers, 2 came"):
        cache.store(tokens, layers[:2])
    with pytest.raises(InvalidInputError, match="layer 0"):
        cache.store(tokens, computed(SLIDING, tokens)[:1] + layers[1:])
    with pytest.raises(InvalidInputError, match="32 tokens came with 31"):
        cache.store(tokens[:-1], layers)
    with pytest.raises(InvalidInputError, match="whole numbers"):
        cache.load([0.5])  # type: ignore[list-item]  # what is tested
    with pytest.raises(InvalidInputError, match="a token is"):
        cache.match([-1] * 16)


def test_a_codec_that_nobody_has_is_refused(make_cache: MakeCache) -> None:
    with pytest.raises(UnknownPluginError, match="'plane'"):
        make_cache(storage="plane")


def test_a_budget_of_nothing_keeps_nothing(
    make_cache: MakeCache, policy: list[KVPolicy], sql: Sql
) -> None:
    policy.append(KVPolicy(budget_bytes=1))
    cache = make_cache()
    tokens = tokens_of(15, 32)
    assert cache.store(tokens, computed(FULL, tokens))
    assert not cache.flush(30)
    assert sql("SELECT count(*) FROM kv_cache") == [(0,)]
    assert cache.load(tokens).length == 0
