"""A KV cache, or a Halo, on a database of its own, and keys and values of nobody's model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import arc_halo
from arc_halo.inference.blocks import LayerKV
from arc_halo.inference.keys import Scope
from arc_halo.inference.kv_cache import KVCache
from arc_halo.inference.layouts import KVLayout, LayerShape
from arc_halo.inference.policies import KVPolicy
from arc_halo.plugins import PluginManager
from arc_halo.store import cache_policies
from arc_halo.store.connection import pool
from arc_halo.store.rows import Pool
from arc_halo.tensors.dtypes import numpy_dtype

FULL = KVLayout(dtype="F32", layers=(LayerShape(heads=2, key_size=8, value_size=8),) * 3)
SLIDING = KVLayout(
    dtype="BF16",
    layers=(
        LayerShape(heads=2, key_size=8, value_size=4),
        LayerShape(heads=1, key_size=16, value_size=16, window=40),
    ),
)
ROOT = hashlib.sha256(b"weights").digest()

MakeCache = Callable[..., KVCache]
CODECS = {name: provided.item for name, provided in PluginManager().codecs.items()}


@pytest.fixture
def open_pool(database: str) -> Iterator[Pool]:
    with pool(database, 8) as opened:
        yield opened


class Policies(list[KVPolicy]):
    """What was declared, one after another; what stands last is in force."""

    def __init__(self, declare: Callable[[KVPolicy], object]) -> None:
        super().__init__([KVPolicy()])
        self._declare = declare

    def append(self, policy: KVPolicy) -> None:
        super().append(policy)
        self._declare(policy)


@pytest.fixture
def policy(open_pool: Pool) -> Policies:
    """The policy in force: what stands last."""

    def declare(policy: KVPolicy) -> None:
        ttl = policy.ttl and policy.ttl.total_seconds()
        with open_pool.connection() as conn:
            cache_policies.upsert(
                conn,
                [{"name": "kv_cache", "budget": policy.budget_bytes, "ttl": ttl, "block_tokens": 64,
                  "codec": "planes", "quota": policy.quota_bytes, "quotas": dict(policy.quotas),
                  "tags": {}}],
            )  # fmt: skip

    return Policies(declare)


@pytest.fixture
def make_cache(open_pool: Pool) -> Iterator[MakeCache]:
    with ExitStack() as stack:

        def make(layout: KVLayout = FULL, **settings: Any) -> KVCache:
            scope = Scope(
                weights=settings.pop("weights", ROOT),
                adapter=settings.pop("adapter", b""),
                tenant=settings.pop("tenant", ""),
            )
            usual = {"block_tokens": 16, "storage": "raw"}
            made = KVCache(open_pool, CODECS, layout, scope, **{**usual, **settings})
            return stack.enter_context(made)

        yield make


@pytest.fixture
def halo(tmp_path: Path, database: str) -> Iterator[arc_halo.Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        yield opened


@pytest.fixture
def sql(database: str) -> Callable[..., list[tuple[Any, ...]]]:
    def run(query: str, *params: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(database) as conn:
            cursor = conn.execute(query.encode(), params)
            return cursor.fetchall() if cursor.description else []

    return run


def tokens_of(seed: int, count: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, 50_000, count).tolist()
    return found


def computed(layout: KVLayout, tokens: Sequence[int], *, cut: bool = True) -> list[LayerKV]:
    """Keys and values as a model would have them: each token's depend on all before it.

    Layers with a window have its last tokens only, as an engine would, unless `cut` is False.
    """
    found = []
    for index, shape in enumerate(layout.layers):
        arrays = []
        for which, size in enumerate(shape.sizes):
            state = hashlib.sha256(repr((index, which, layout)).encode())
            rows = []
            for token in tokens:
                state.update(token.to_bytes(4, "little"))
                seed = int.from_bytes(state.digest()[:8], "little")
                rows.append(np.random.default_rng(seed).standard_normal((shape.heads, size)))
            array = np.stack(rows, axis=1).astype(numpy_dtype(layout.dtype))
            arrays.append(array)
        start = 0
        if cut and shape.window is not None:
            start = max(0, len(tokens) - (shape.window - 1))
        layer = LayerKV(keys=arrays[0][:, start:], values=arrays[1][:, start:], start=start)
        found.append(layer)
    return found


def shortened(layout: KVLayout, layers: Sequence[LayerKV], length: int) -> list[LayerKV]:
    """Of all tokens, what an engine has after `length` of them."""
    found = []
    for shape, layer in zip(layout.layers, layers, strict=True):
        start = 0 if shape.window is None else max(0, length - (shape.window - 1))
        keys, values = layer.keys[:, start:length], layer.values[:, start:length]
        found.append(replace(layer, keys=keys, values=values, start=start))
    return found


def between(layers: Sequence[LayerKV], start: int, stop: int) -> list[LayerKV]:
    """Of all tokens, some."""
    return [
        replace(
            layer, start=start, keys=layer.keys[:, start:stop], values=layer.values[:, start:stop]
        )
        for layer in layers
    ]


def same(left: Sequence[LayerKV], right: Sequence[LayerKV]) -> bool:
    """Whether they are of the same tokens and have the same bytes."""
    return len(left) == len(right) and all(
        (a.start, a.stop) == (b.start, b.stop)
        and a.keys.tobytes() == b.keys.tobytes()
        and a.values.tobytes() == b.values.tobytes()
        for a, b in zip(left, right, strict=True)
    )
