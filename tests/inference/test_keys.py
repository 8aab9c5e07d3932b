"""Keys of blocks: whatever differs, in whichever field, makes another key."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import InvalidInputError
from arc_halo.inference.keys import Scope, chain, namespace, token_blocks
from arc_halo.inference.layouts import (
    Group,
    KVLayout,
    LayerShape,
    check_layout,
    usable_length,
)
from arc_halo.store import kv_cache
from arc_halo.store.rows import Pool
from tests.inference.conftest import FULL, MakeCache, computed

WEIGHTS = hashlib.sha256(b"weights").digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """All that decides what a block is called."""

    weights: bytes = WEIGHTS
    adapter: bytes = b""
    tenant: str = ""
    layout: bytes = b""
    group: int = 0
    block_tokens: int = 16
    storage: str = "raw"
    tokens: tuple[int, ...] = tuple(range(32))

    def keys(self) -> list[bytes]:
        scope = Scope(weights=self.weights, adapter=self.adapter, tenant=self.tenant)
        space = namespace(scope, self.layout, self.group, self.block_tokens, self.storage)
        return chain(space, token_blocks(self.tokens, self.block_tokens))


def adversaries(stored: Asked, count: int) -> Iterator[Asked]:
    """Others than `stored`, as near to it as they can be: a bit of the weights, bytes moved from a
    field to the next, the same tokens in other blocks."""
    draw = random.Random(0)
    texts = ["", "a", "ab", "abc", "b", "bc", "c", "\0", "raw", "0", "00", "é", "e\u0301"]
    while count:
        weights = bytearray(stored.weights)
        if draw.random() < 0.4:
            bit = draw.randrange(256)
            weights[bit // 8] ^= 1 << bit % 8
        tokens = list(stored.tokens)
        if draw.random() < 0.6:
            at = draw.randrange(len(tokens))
            tokens[at] = draw.choice([tokens[at] + 1, 0, tokens[at] << 8, tokens[at] | 1 << 31])
        if draw.random() < 0.3:
            start = draw.randrange(8)
            tokens = tokens[start:] + tokens[:start]
        other = Asked(
            weights=bytes(weights),
            adapter=draw.choice(texts).encode(),
            tenant=draw.choice(texts),
            layout=draw.choice([stored.layout, bytes(32), b"", b"\1" * 32]),
            group=draw.choice([0, 0, 1]),
            block_tokens=draw.choice([8, 16, 16, 32]),
            storage=draw.choice(["raw", "raw", "planes", "int8"]),
            tokens=tuple(tokens),
        )
        if other != stored:
            count -= 1
            yield other


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.campaign)])
def test_many_adversaries_hit_nothing(make_cache: MakeCache, open_pool: Pool, count: int) -> None:
    cache = make_cache()
    stored = Asked(weights=cache.scope.weights, layout=FULL.digest())
    cache.store(stored.tokens, computed(FULL, stored.tokens))
    assert cache.flush(30)
    own = stored.keys()
    asked: dict[bytes, tuple[object, ...]] = {}
    for other in adversaries(stored, count):
        # The first block alone says nothing of the tokens after it.
        for index, key in enumerate(other.keys()):
            what = replace(other, tokens=other.tokens[: (index + 1) * other.block_tokens])
            is_stored = replace(stored, tokens=stored.tokens[: (index + 1) * 16]) == what
            assert is_stored == (key in own)
            if not is_stored:
                asked[key] = asked.get(key, (what,))
                assert asked[key] == (what,)
    assert len(asked) > count
    keys = list(asked)
    with open_pool.connection() as conn:
        assert kv_cache.match(conn, own) == [0, 1]
        for start in range(0, len(keys), 10_000):
            assert kv_cache.match(conn, keys[start : start + 10_000]) == []


def test_a_key_is_what_the_formula_says() -> None:
    def hashed(*fields: bytes) -> bytes:
        text = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
        return hashlib.sha256(text).digest()

    asked = Asked(adapter=b"lora", tenant="acme", layout=b"L" * 32, group=1)
    space = hashed(
        b"arc-halo/kv/1", WEIGHTS, b"lora", b"acme", b"L" * 32, b"\1\0\0\0", b"\x10\0\0\0", b"raw"
    )
    tokens = [b"".join(t.to_bytes(4, "little") for t in range(16 * i, 16 * i + 16)) for i in (0, 1)]
    first = hashed(b"arc-halo/kv-block/1", space, b"", tokens[0])
    second = hashed(b"arc-halo/kv-block/1", space, first, tokens[1])
    assert asked.keys() == [first, second]


def test_what_a_model_is_called_decides_nothing() -> None:
    spaces = {
        namespace(Scope(weights=WEIGHTS, model=model), b"", 0, 16, "raw") for model in ("", "m@1")
    }
    assert len(spaces) == 1


def test_tokens_below_a_block_make_none() -> None:
    assert token_blocks(range(15), 16) == []
    assert len(token_blocks(range(33), 16)) == 2


@pytest.mark.parametrize("tokens", [[[1, 2]], [1.5], ["a"], [-1], [2**32], [True]])
def test_what_is_no_token_is_refused(tokens: list[object]) -> None:
    with pytest.raises(InvalidInputError):
        token_blocks(tokens, 1)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(
    ("layout", "block_tokens", "said"),
    [
        (KVLayout(dtype="F32", layers=()), 16, "without layers"),
        (FULL, 0, "block_tokens=0"),
        (FULL, 4097, "block_tokens=4097"),
        (KVLayout(dtype="F4", layers=FULL.layers), 16, "F4"),
        (
            KVLayout(dtype="F32", layers=(LayerShape(heads=0, key_size=8, value_size=8),)),
            16,
            "size",
        ),
        (
            KVLayout(dtype="F32", layers=(LayerShape(heads=1, key_size=4096, value_size=8),)),
            128,
            "one head of layer 0 has 2097152 bytes",
        ),
    ],
)
def test_a_layout_that_cannot_be_stored_is_refused(
    layout: KVLayout, block_tokens: int, said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        check_layout(layout, block_tokens)


def needed(group: Group, length: int, block: int) -> set[int]:
    """The blocks with a token that the next one sees, one by one."""
    first = 0 if group.window is None else max(0, length - (group.window - 1))
    return {token // block for token in range(first, length)}


@given(
    windows=st.lists(st.none() | st.integers(1, 40), min_size=1, max_size=3),
    block=st.integers(1, 8),
    data=st.data(),
)
def test_a_prefix_is_usable_as_far_as_every_group_has_what_it_needs(
    windows: list[int | None], block: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, 12))
    groups = [Group(window=window, layers=(i,)) for i, window in enumerate(windows)]
    present = [data.draw(st.lists(st.booleans(), min_size=count, max_size=count)) for _ in groups]
    limit = data.draw(st.integers(0, count * block + 3))
    expected = max(
        length
        for length in range(min(limit, count * block) + 1)
        if all(
            all(there[index] for index in needed(group, length, block))
            for group, there in zip(groups, present, strict=True)
        )
    )
    found = usable_length(groups, present, block, limit)
    assert found == expected
