"""The KV cache kept in order by hand: what makes no sense is refused, and changes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from arc_halo.errors import InvalidInputError, RefusedError
from arc_halo.inference import housekeeping
from arc_halo.inference.policies import KVPolicy
from arc_halo.store import kv_cache as store
from arc_halo.store.rows import Pool
from tests.inference.conftest import FULL, MakeCache, computed, tokens_of

TOKENS = tokens_of(1, 32)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("evict", {"tenant": 5}),
        ("evict", {"tenant": "a\0b"}),
        ("evict", {"roots": "ab"}),
        ("evict", {"roots": bytes(32)}),
        ("evict", {"roots": [bytes(31)]}),
        ("evict", {"roots": ["00" * 32]}),
        ("evict", {"roots": [None]}),
        ("evict", {"roots": 7}),
        ("evict", {"idle": "7d"}),
        ("evict", {"idle": 3600}),
        ("evict", {"idle": timedelta(seconds=-1)}),
        ("evict", {"idle": timedelta.max}),
        ("evict", {"pinned": None}),
        ("evict", {"pinned": "no"}),
        ("evict", {"dry_run": None}),
        ("clear", {"dry_run": None}),
        ("clear", {"dry_run": "false"}),
        ("verify", {"sample": 0}),
        ("verify", {"sample": -1}),
        ("verify", {"sample": "8"}),
        ("verify", {"sample": 0.5}),
        ("verify", {"sample": True}),
        ("verify", {"sample": 2**64}),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_hint(
    make_cache: MakeCache, open_pool: Pool, call: str, arguments: dict[str, Any]
) -> None:
    cache = make_cache()
    cache.store(TOKENS, computed(FULL, TOKENS))
    assert cache.flush(30)
    with open_pool.connection() as conn:
        with pytest.raises(InvalidInputError) as refused:
            getattr(housekeeping, call)(conn, **arguments)
        assert refused.value.hint
        assert housekeeping.verify(conn).blocks == 2


@pytest.mark.parametrize("count", [0, -1, None, "8", 1.5])
def test_a_sample_is_of_one_prompt_or_more(make_cache: MakeCache, count: Any) -> None:
    with pytest.raises(InvalidInputError, match="count cannot be") as refused:
        list(make_cache().sample(count))
    assert refused.value.hint


@pytest.mark.parametrize("tokens", [None, 5, "text", [None], ["a"], [[1], [2, 3]], [-1] * 16])
def test_what_is_no_prompt_is_neither_pinned_nor_unpinned(
    make_cache: MakeCache, tokens: Any
) -> None:
    cache = make_cache()
    for call in (cache.pin, cache.unpin):
        with pytest.raises(InvalidInputError):
            call(tokens)


@pytest.mark.parametrize("label", [5, "a\0b", "\ud800"])
def test_a_label_is_a_text(make_cache: MakeCache, label: Any) -> None:
    with pytest.raises(InvalidInputError, match="label") as refused:
        make_cache().pin(TOKENS, label)
    assert refused.value.hint


def test_no_label_is_an_empty_one(make_cache: MakeCache) -> None:
    cache = make_cache()
    cache.store(TOKENS, computed(FULL, TOKENS))
    assert cache.flush(30)
    label: Any = None
    assert cache.pin(TOKENS, label) == 32


def test_a_pin_beyond_half_of_the_budget_is_refused_in_the_units_of_a_manifest(
    make_cache: MakeCache, policy: list[KVPolicy]
) -> None:
    cache = make_cache()
    cache.store(TOKENS, computed(FULL, TOKENS))
    assert cache.flush(30)
    policy.append(KVPolicy(budget_bytes=2**13))
    with pytest.raises(RefusedError, match="budget of 8KiB"):
        cache.pin(TOKENS)


def test_a_tenant_pins_half_of_its_quota_at_most(
    make_cache: MakeCache, policy: list[KVPolicy], open_pool: Pool
) -> None:
    cache, other = make_cache(tenant="acme"), make_cache(tenant="other")
    for each in (cache, other):
        each.store(TOKENS, computed(FULL, TOKENS))
        assert each.flush(30)
    with open_pool.connection() as conn:
        block = store.tenant_bytes(conn, "acme") // 2
    policy.append(KVPolicy(quotas={"acme": 3 * block}))
    assert cache.pin(TOKENS[:16]) == 16
    with pytest.raises(RefusedError, match="half of the tenant's quota") as refused:
        cache.pin(TOKENS)
    assert refused.value.hint
    assert other.pin(TOKENS) == 32
    assert cache.unpin(TOKENS)
    policy.append(KVPolicy(quotas={"acme": 4 * block}))
    assert cache.pin(TOKENS) == 32


def test_with_what_is_pinned_of_a_tenant_new_prompts_are_kept(
    make_cache: MakeCache, policy: list[KVPolicy], open_pool: Pool
) -> None:
    cache = make_cache(tenant="acme")
    cache.store(TOKENS, computed(FULL, TOKENS))
    assert cache.flush(30)
    with open_pool.connection() as conn:
        policy.append(KVPolicy(quotas={"acme": 2 * store.tenant_bytes(conn, "acme")}))
    assert cache.pin(TOKENS) == 32
    for seed in (2, 3):
        prompt = tokens_of(seed, 16)
        cache.store(prompt, computed(FULL, prompt))
        assert cache.flush(30)
        assert cache.match(prompt) == 16
    assert cache.match(TOKENS) == 32
