"""The KV cache with many at it: whatever happens in between, each commit keeps its promises."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import pytest

from arc_halo.errors import RefusedError
from arc_halo.inference import housekeeping
from arc_halo.inference.blocks import LayerKV, digest_of
from arc_halo.inference.keys import Scope
from arc_halo.inference.kv_cache import KVCache
from arc_halo.inference.layouts import KVLayout, LayerShape
from arc_halo.inference.policies import KVPolicy
from arc_halo.store import kv_cache as store
from arc_halo.store.connection import pool
from arc_halo.store.rows import Connection, Pool
from arc_halo.tensors.dtypes import numpy_dtype
from tests.inference.conftest import CODECS, MakeCache, same

FULL = KVLayout(dtype="F32", layers=(LayerShape(heads=1, key_size=32, value_size=32),) * 2)
SLIDING = KVLayout(
    dtype="F32",
    layers=(
        LayerShape(heads=1, key_size=32, value_size=32),
        LayerShape(heads=1, key_size=16, value_size=16, window=20),
    ),
)
BLOCK = 8
BLOCK_BYTES = 2 * 2 * 32 * 4 * BLOCK


def valued(layout: KVLayout, tokens: Sequence[int]) -> list[LayerKV]:
    """Keys and values that each tell of all tokens before them, cheaply."""
    prefix = np.cumsum(np.asarray(tokens, np.float64) * 1.0000001)
    layers = []
    for index, shape in enumerate(layout.layers):
        start = 0 if shape.window is None else max(0, len(tokens) - (shape.window - 1))
        arrays = [
            (prefix[None, :, None] + np.arange(size) + 100 * index + 7 * which).astype(
                numpy_dtype(layout.dtype)
            )
            for which, size in enumerate(shape.sizes)
        ]
        layers.append(LayerKV(keys=arrays[0][:, start:], values=arrays[1][:, start:], start=start))
    return layers


def prompt(draw: random.Random) -> list[int]:
    """One of many that share their beginnings."""
    tokens: list[int] = []
    for _ in range(draw.randint(1, 6)):
        seed = draw.randint(0, 3)
        tokens += [1000 * len(tokens) + seed * 10 + i for i in range(draw.choice([8, 12, 16]))]
    return tokens


BROKEN = """
SELECT 'no parent' FROM kv_cache AS block
WHERE parent_key IS NOT NULL
  AND NOT EXISTS (SELECT FROM kv_cache AS parent WHERE parent.block_key = block.parent_key)
UNION ALL
SELECT 'twice' FROM kv_cache GROUP BY block_key HAVING count(*) > 1
UNION ALL
SELECT 'parts' FROM kv_cache AS block
WHERE part_count <> (SELECT count(*) FROM kv_cache_bodies AS part
                     WHERE (part.block_key, part.generation)
                         = (block.block_key, block.generation))
UNION ALL
SELECT 'orphan' FROM kv_cache_bodies AS part
WHERE NOT EXISTS (SELECT FROM kv_cache AS block
                  WHERE (block.block_key, block.generation) = (part.block_key, part.generation))
UNION ALL
SELECT 'usage' FROM (SELECT generation, tenant, weights_root, count(*) AS blocks,
                            sum(stored_bytes) AS stored_bytes
                     FROM kv_cache GROUP BY generation, tenant, weights_root) AS found
FULL JOIN (SELECT * FROM kv_cache_usage WHERE blocks > 0) AS told
  USING (generation, tenant, weights_root)
WHERE (found.blocks, found.stored_bytes) IS DISTINCT FROM (told.blocks, told.stored_bytes)
UNION ALL
SELECT 'used later than what it follows' FROM kv_cache AS block
JOIN kv_cache AS parent ON parent.block_key = block.parent_key
WHERE block.last_used_at > parent.last_used_at
UNION ALL
SELECT 'older than what follows it' FROM kv_cache AS block
JOIN kv_cache AS parent ON parent.block_key = block.parent_key AND parent.generation <> -1
JOIN kv_cache_generations AS own ON own.generation = block.generation
JOIN kv_cache_generations AS above ON above.generation = parent.generation
WHERE above.sequence < own.sequence
UNION ALL
SELECT 'pin' FROM kv_cache_pins AS pin
WHERE NOT EXISTS (SELECT FROM kv_cache AS block
                  WHERE block.block_key = pin.block_key AND block.generation = -1)
"""


def check(conn: Connection, policy: KVPolicy) -> None:
    """What holds after each commit."""
    with conn.transaction():
        store.lock(conn)
        assert conn.execute(BROKEN).fetchall() == []
        generations = store.generations(conn)
        assert sum(each.written_bytes for each in generations) <= policy.budget_bytes
        held = conn.execute("SELECT coalesce(sum(stored_bytes), 0)::bigint FROM kv_cache")
        assert held.fetchall()[0][0] <= policy.budget_bytes
        for tenant, quota in policy.quotas.items():
            assert store.tenant_bytes(conn, tenant) <= quota
        pinned = [each for each in generations if each.generation == store.PINNED]
        kept = conn.execute("SELECT coalesce(sum(stored_bytes), 0) FROM kv_cache_pinned")
        assert kept.fetchall()[0][0] == sum(each.written_bytes for each in pinned)


class Crowd:
    """Threads that all use the cache at once, until one of them fails or the time is over."""

    def __init__(self, make_cache: MakeCache, pool: Pool, policy: KVPolicy, seconds: float) -> None:
        self.pool, self.policy = pool, policy
        self.caches = [
            make_cache(layout, tenant=tenant, block_tokens=BLOCK, storage=storage)
            for layout, storage in ((FULL, "raw"), (SLIDING, "zstd"))
            for tenant in ("", "acme")
        ]
        self.until = time.monotonic() + seconds
        self.failed: list[BaseException] = []
        self.done: dict[str, int] = {}
        self.lock = threading.Lock()

    def run(self, seed: int) -> None:
        jobs = [self.write] * 3 + [self.read] * 2 + [self.pin, self.evict, self.look]
        threads = [
            threading.Thread(target=self.repeat, args=(job, seed * 100 + index))
            for index, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failed:
            raise self.failed[0]

    def repeat(self, job: Callable[[random.Random], None], seed: int) -> None:
        draw = random.Random(seed)
        try:
            while time.monotonic() < self.until and not self.failed:
                job(draw)
                with self.lock:
                    self.done[job.__name__] = self.done.get(job.__name__, 0) + 1
        except BaseException as exc:  # noqa: BLE001 - the thread's error is the test's
            self.failed.append(exc)

    def write(self, draw: random.Random) -> None:
        cache = draw.choice(self.caches)
        tokens = prompt(draw)
        assert cache.store(tokens, valued(cache.layout, tokens))
        cache.flush(60)  # False where pins leave no room; errors are logged

    def read(self, draw: random.Random) -> None:
        cache = draw.choice(self.caches)
        tokens = prompt(draw)
        found = cache.load(tokens, limit=draw.choice([None, len(tokens) - 1]))
        if found.length:
            assert same(found.layers, valued(cache.layout, tokens[: found.length]))

    def pin(self, draw: random.Random) -> None:
        cache = draw.choice(self.caches)
        tokens = prompt(draw)
        with suppress(RefusedError):
            cache.pin(tokens, label="a pin")
        time.sleep(0.01)
        cache.unpin(prompt(draw) if draw.random() < 0.3 else tokens)

    def evict(self, draw: random.Random) -> None:
        with self.pool.connection() as conn:
            what = draw.random()
            if what < 0.02:
                housekeeping.clear(conn)
            elif what < 0.3:
                housekeeping.evict(conn, tenant=draw.choice(["", "acme"]))
            else:
                housekeeping.evict(conn, idle=timedelta(seconds=draw.random()))
        time.sleep(0.05)

    def look(self, draw: random.Random) -> None:
        with self.pool.connection() as conn:
            check(conn, self.policy)
            assert housekeeping.verify(conn, sample=20).damaged == ()
        time.sleep(0.02)


def crowded(
    make_cache: MakeCache,
    open_pool: Pool,
    policy: list[KVPolicy],
    told: pytest.LogCaptureFixture,
    *,
    seed: int,
    seconds: float,
) -> Crowd:
    policy.append(
        KVPolicy(
            budget_bytes=60 * BLOCK_BYTES,
            ttl=timedelta(seconds=20),
            quotas={"acme": 20 * BLOCK_BYTES},
        )
    )
    crowd = Crowd(make_cache, open_pool, policy[-1], seconds)
    crowd.run(seed)
    assert [each.getMessage() for each in told.records] == []
    assert min(crowd.done.values()) > 0
    return crowd


def test_many_writers_readers_and_evictors_leave_it_whole(
    make_cache: MakeCache,
    open_pool: Pool,
    policy: list[KVPolicy],
    caplog: pytest.LogCaptureFixture,
) -> None:
    crowded(make_cache, open_pool, policy, caplog, seed=1, seconds=4)


@pytest.mark.campaign
def test_minutes_of_many_leave_it_whole(
    make_cache: MakeCache,
    open_pool: Pool,
    policy: list[KVPolicy],
    caplog: pytest.LogCaptureFixture,
) -> None:
    crowded(make_cache, open_pool, policy, caplog, seed=int(time.time()), seconds=600)


def test_the_budget_is_kept_and_what_was_used_last_stays(
    make_cache: MakeCache, open_pool: Pool, policy: list[KVPolicy]
) -> None:
    policy.append(KVPolicy(budget_bytes=24 * BLOCK_BYTES))
    cache = make_cache(FULL, block_tokens=BLOCK)
    kept = [7_000_000 + i for i in range(2 * BLOCK)]
    cache.store(kept, valued(FULL, kept))
    for number in range(40):
        tokens = [1_000 * number + i for i in range(2 * BLOCK)]
        cache.store(tokens, valued(FULL, tokens))
        assert cache.flush(30)
        found = cache.load(kept)
        assert same(found.layers, valued(FULL, kept))
        assert cache.flush(30)
        with open_pool.connection() as conn:
            check(conn, policy[-1])
    assert cache.match(list(range(2 * BLOCK))) == 0  # the first of the forty is gone
    assert cache.match([39_000 + i for i in range(2 * BLOCK)]) == 2 * BLOCK


def test_a_prompt_beyond_the_budget_is_kept_as_far_as_it_fits(
    make_cache: MakeCache, open_pool: Pool, policy: list[KVPolicy]
) -> None:
    policy.append(KVPolicy(budget_bytes=10 * BLOCK_BYTES))
    cache = make_cache(FULL, block_tokens=BLOCK)
    tokens = list(range(30 * BLOCK))
    cache.store(tokens, valued(FULL, tokens))
    assert not cache.flush(30)
    found = cache.load(tokens)
    assert found.length == 10 * BLOCK
    assert same(found.layers, valued(FULL, tokens[: found.length]))
    with open_pool.connection() as conn:
        check(conn, policy[-1])


def test_a_tenant_has_its_quota_and_takes_nothing_from_others(
    make_cache: MakeCache, open_pool: Pool, policy: list[KVPolicy]
) -> None:
    policy.append(KVPolicy(budget_bytes=1000 * BLOCK_BYTES, quotas={"acme": 5 * BLOCK_BYTES}))
    ours, acme = (
        make_cache(FULL, block_tokens=BLOCK),
        make_cache(FULL, block_tokens=BLOCK, tenant="acme"),
    )
    mine = list(range(5 * BLOCK))
    ours.store(mine, valued(FULL, mine))
    assert ours.flush(30)
    for number in range(10):
        tokens = [1_000 * number + i for i in range(3 * BLOCK)]
        acme.store(tokens, valued(FULL, tokens))
        assert acme.flush(30)
        with open_pool.connection() as conn:
            check(conn, policy[-1])
        assert acme.load(tokens).length == 3 * BLOCK
    assert ours.load(mine).length == 5 * BLOCK


def test_what_is_pinned_stays_until_nothing_pins_it(
    make_cache: MakeCache, open_pool: Pool, policy: list[KVPolicy]
) -> None:
    policy.append(KVPolicy(budget_bytes=24 * BLOCK_BYTES))
    cache = make_cache(FULL, block_tokens=BLOCK)
    system = list(range(4 * BLOCK))
    longer = [*system, *range(500, 500 + BLOCK)]
    cache.store(longer, valued(FULL, longer))
    assert cache.flush(30)
    assert cache.pin(system, label="system prompt") == 4 * BLOCK
    assert cache.pin(longer) == 5 * BLOCK

    def crowd_out(base: int) -> None:
        for number in range(30):
            tokens = [base + 1_000 * number + i for i in range(2 * BLOCK)]
            cache.store(tokens, valued(FULL, tokens))
        assert cache.flush(30)
        with open_pool.connection() as conn:
            check(conn, policy[-1])

    crowd_out(10_000)
    assert cache.load(longer).length == 5 * BLOCK
    assert cache.unpin(longer)
    crowd_out(100_000)
    assert cache.load(longer).length == 4 * BLOCK
    assert cache.unpin(longer)
    assert not cache.unpin(longer)
    assert cache.flush(30)
    crowd_out(200_000)
    assert cache.match(system) == 0


def test_pins_keep_to_the_budget(
    make_cache: MakeCache, open_pool: Pool, policy: list[KVPolicy]
) -> None:
    policy.append(KVPolicy(budget_bytes=12 * BLOCK_BYTES))
    cache = make_cache(FULL, block_tokens=BLOCK)
    prompts = [list(range(1_000 * number, 1_000 * number + BLOCK)) for number in range(12)]
    for tokens in prompts:
        cache.store(tokens, valued(FULL, tokens))
        assert cache.flush(30)
    for tokens in prompts[-3:]:
        assert cache.pin(tokens) == BLOCK
        with open_pool.connection() as conn:
            check(conn, policy[-1])
    assert [cache.match(tokens) for tokens in prompts[-3:]] == [BLOCK] * 3


def test_more_than_half_of_the_budget_cannot_be_pinned(
    make_cache: MakeCache, open_pool: Pool, policy: list[KVPolicy]
) -> None:
    policy.append(KVPolicy(budget_bytes=10 * BLOCK_BYTES))
    cache = make_cache(FULL, block_tokens=BLOCK)
    tokens = list(range(6 * BLOCK))
    cache.store(tokens, valued(FULL, tokens))
    assert cache.flush(30)
    with pytest.raises(RefusedError, match="more than half"):
        cache.pin(tokens)
    with open_pool.connection() as conn:
        check(conn, policy[-1])


def test_what_nobody_uses_for_long_is_a_miss_and_goes(
    make_cache: MakeCache, open_pool: Pool, policy: list[KVPolicy], sql: Callable[..., Any]
) -> None:
    policy.append(KVPolicy(ttl=timedelta(hours=1)))
    cache = make_cache(FULL, block_tokens=BLOCK)
    tokens = list(range(4 * BLOCK))
    cache.store(tokens, valued(FULL, tokens))
    assert cache.flush(30)
    assert cache.load(tokens).length == 4 * BLOCK
    cache.close()
    sql("UPDATE kv_cache SET last_used_at = last_used_at - interval '2 hours'")
    late = make_cache(FULL, block_tokens=BLOCK)
    assert late.match(tokens) == 0
    assert late.load(tokens).length == 0
    other = list(range(900, 900 + BLOCK))
    late.store(other, valued(FULL, other))
    assert late.flush(30)
    assert sql("SELECT count(*) FROM kv_cache") == [(1,)]


def test_what_is_pinned_is_found_however_long_nobody_used_it(
    make_cache: MakeCache, policy: list[KVPolicy], sql: Callable[..., Any]
) -> None:
    policy.append(KVPolicy(ttl=timedelta(hours=1)))
    cache = make_cache(FULL, block_tokens=BLOCK)
    tokens = list(range(4 * BLOCK))
    cache.store(tokens, valued(FULL, tokens))
    assert cache.flush(30)
    assert cache.pin(tokens[: 2 * BLOCK]) == 2 * BLOCK
    sql("UPDATE kv_cache SET last_used_at = last_used_at - interval '2 hours'")
    assert cache.match(tokens) == 2 * BLOCK
    assert same(cache.load(tokens).layers, valued(FULL, tokens[: 2 * BLOCK]))


def test_damage_is_told_by_verify_and_written_anew_after_it_was_met(
    make_cache: MakeCache, open_pool: Pool, sql: Callable[..., Any]
) -> None:
    cache = make_cache(FULL, block_tokens=BLOCK)
    tokens = list(range(4 * BLOCK))
    cache.store(tokens, valued(FULL, tokens))
    assert cache.flush(30)
    sql(
        "UPDATE kv_cache_bodies SET body = set_byte(body, 5, get_byte(body, 5) # 1)"
        " WHERE block_key = (SELECT block_key FROM kv_cache WHERE block_index = 1)"
    )
    with open_pool.connection() as conn:
        found = housekeeping.verify(conn)
    assert (found.blocks, [each.index for each in found.damaged]) == (4, [1])
    assert cache.load(tokens).length == BLOCK
    assert cache.flush(30)
    assert sql("SELECT count(*) FROM kv_cache") == [(1,)]  # with what followed it
    cache.store(tokens, valued(FULL, tokens))
    assert cache.flush(30)
    assert same(cache.load(tokens).layers, valued(FULL, tokens))


def test_damage_that_was_found_can_be_dropped(
    make_cache: MakeCache, open_pool: Pool, sql: Callable[..., Any], policy: list[KVPolicy]
) -> None:
    cache = make_cache(FULL, block_tokens=BLOCK)
    tokens = list(range(4 * BLOCK))
    cache.store(tokens, valued(FULL, tokens))
    assert cache.flush(30)
    sql("DELETE FROM kv_cache_bodies WHERE block_key ="
        " (SELECT block_key FROM kv_cache WHERE block_index = 2)")  # fmt: skip
    with open_pool.connection() as conn:
        found = housekeeping.verify(conn)
        assert [each.problem for each in found.damaged] == ["1 of 1 parts are missing"]
        assert housekeeping.drop_damaged(conn, found.damaged).blocks == 2
        assert housekeeping.verify(conn).damaged == ()
        check(conn, policy[-1])


def fill(cache: KVCache, count: int, blocks: int = 1, base: int = 0) -> list[list[int]]:
    """Prompts that have nothing in common, each of so many blocks."""
    found = []
    for number in range(count):
        start = base + 1_000 * number
        found.append(list(range(start, start + blocks * BLOCK)))
        cache.store(found[-1], valued(FULL, found[-1]))
        assert cache.flush(30)
    return found


def held(cache: KVCache, prompts: Sequence[Sequence[int]]) -> int:
    return sum(cache.match(tokens) // BLOCK for tokens in prompts)


def test_one_who_does_not_stop_reading_keeps_nothing_from_going(
    make_cache: MakeCache, open_pool: Pool, policy: list[KVPolicy]
) -> None:
    policy.append(KVPolicy(budget_bytes=6 * BLOCK_BYTES))
    cache = make_cache(FULL, block_tokens=BLOCK)
    with open_pool.connection() as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM kv_cache, kv_cache_bodies")
        prompts = fill(cache, 9)
        assert cache.match(prompts[-1]) == BLOCK
        with open_pool.connection() as conn:
            check(conn, policy[-1])


def test_hits_of_a_long_prompt_leave_others_where_they_are(
    make_cache: MakeCache, open_pool: Pool, policy: list[KVPolicy]
) -> None:
    policy.append(KVPolicy(budget_bytes=24 * BLOCK_BYTES))
    cache = make_cache(FULL, block_tokens=BLOCK)
    others = fill(cache, 4, blocks=3)
    (long,) = fill(cache, 1, blocks=5, base=100_000)
    before = held(cache, others)
    for _ in range(6):
        assert cache.load(long).length == len(long)
        assert cache.flush(30)
    assert held(cache, others) == before == 12
    # Nor does a conversation that gets longer, block by block, write itself anew each time.
    for turn in range(1, 5):
        longer = [*long, *range(500_000, 500_000 + turn * BLOCK)]
        cache.store(longer, valued(FULL, longer))
        assert cache.flush(30)
        with open_pool.connection() as conn:
            check(conn, policy[-1])
    assert cache.match(longer) == len(longer)
    assert held(cache, others) >= 9


@pytest.mark.parametrize("pinned", [0, 3])
def test_a_budget_that_is_made_smaller_is_kept_from_the_next_write_on(
    make_cache: MakeCache, open_pool: Pool, policy: list[KVPolicy], pinned: int
) -> None:
    policy.append(KVPolicy(budget_bytes=24 * BLOCK_BYTES))
    cache = make_cache(FULL, block_tokens=BLOCK)
    prompts = fill(cache, 20)
    for tokens in prompts[:pinned]:
        assert cache.pin(tokens) == BLOCK
    for budget in (8, pinned + 1):
        policy.append(KVPolicy(budget_bytes=budget * BLOCK_BYTES - 1))
        cache.store([7, *prompts[0]], valued(FULL, [7, *prompts[0]]))
        cache.flush(30)
        with open_pool.connection() as conn:
            check(conn, policy[-1])
    assert held(cache, prompts[:pinned]) == pinned


def test_what_could_not_be_written_is_told_by_the_next_flush(
    make_cache: MakeCache, sql: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(FULL, block_tokens=BLOCK)
    sql("ALTER TABLE kv_cache_usage RENAME TO elsewhere")
    tokens = list(range(BLOCK))
    cache.store(tokens, valued(FULL, tokens))
    while not caplog.records:
        time.sleep(0.05)
    sql("ALTER TABLE elsewhere RENAME TO kv_cache_usage")
    assert "were not kept" in caplog.text
    assert not cache.flush(30)
    assert cache.flush(30)
    # Nobody refused them.
    assert sql("SELECT sum(refused_blocks) FROM kv_cache_counters") in ([(0,)], [(None,)])
    cache.store(tokens, valued(FULL, tokens))
    assert cache.flush(30)
    assert cache.match(tokens) == BLOCK


def test_a_role_that_may_not_truncate_deletes(
    make_cache: MakeCache, database: str, policy: list[KVPolicy], sql: Callable[..., Any]
) -> None:
    policy.append(KVPolicy(budget_bytes=6 * BLOCK_BYTES))
    make_cache()
    role = f"reader_{uuid4().hex[:8]}"
    sql(f"CREATE ROLE {role} LOGIN")
    try:
        sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
        url = urlsplit(database)._replace(netloc=f"{role}@").geturl()
        with (
            pool(url, 4) as opened,
            KVCache(
                opened, CODECS, FULL, Scope(weights=bytes(32)), block_tokens=BLOCK, storage="raw"
            ) as cache,
        ):
            prompts = fill(cache, 12)
            assert cache.match(prompts[-1]) == BLOCK
            with opened.connection() as conn:
                check(conn, policy[-1])
    finally:
        sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_forked_process_keeps_nothing_waits_for_nothing_and_says_why(
    make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(FULL, block_tokens=BLOCK)
    tokens = list(range(BLOCK))
    cache.store(tokens, valued(FULL, tokens))
    assert cache.flush(30)
    if (child := os.fork()) == 0:
        said = cache.store(tokens, valued(FULL, tokens)), cache.flush()
        told = [each.getMessage() for each in caplog.records]
        is_told = len(told) == 1 and "this process was forked" in told[0]
        os._exit(0 if said == (False, False) and is_told else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_what_a_damaged_pin_held_is_let_go_of(
    make_cache: MakeCache, open_pool: Pool, policy: list[KVPolicy], sql: Callable[..., Any]
) -> None:
    cache = make_cache(FULL, block_tokens=BLOCK)
    tokens = list(range(5 * BLOCK))
    cache.store(tokens, valued(FULL, tokens))
    assert cache.flush(30)
    assert cache.pin(tokens) == 5 * BLOCK
    sql(
        "UPDATE kv_cache_bodies SET body = set_byte(body, 5, get_byte(body, 5) # 1)"
        " WHERE block_key = (SELECT block_key FROM kv_cache WHERE block_index = 4)"
    )
    assert cache.load(tokens).length == 4 * BLOCK
    assert cache.flush(30)
    assert sql("SELECT count(*) FROM kv_cache_pinned") == [(0,)]
    with open_pool.connection() as conn:
        check(conn, policy[-1])


def test_a_digest_is_of_one_block_alone() -> None:
    assert digest_of(b"\0" * 32, [b"body"]) != digest_of(b"\1" * 32, [b"body"])
    assert digest_of(b"\0" * 32, [b"bo", b"dy"]) == digest_of(b"\0" * 32, [b"body"])
