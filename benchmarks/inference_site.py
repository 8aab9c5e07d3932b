"""Keys and values to be measured with, and the cache that they are in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from arc_halo.inference.blocks import LayerKV
from arc_halo.inference.keys import Scope
from arc_halo.inference.kv_cache import KVCache
from arc_halo.inference.layouts import KVLayout, LayerShape
from arc_halo.plugins import PluginManager
from arc_halo.store.connection import pool

LAYOUT = KVLayout(dtype="F32", layers=(LayerShape(heads=4, key_size=64, value_size=64),) * 8)
"""1 MiB for each block of 64 tokens."""

SCOPE = Scope(weights=bytes(32))
CODECS = {name: provided.item for name, provided in PluginManager().codecs.items()}


@contextmanager
def open_cache(url: str, storage: str) -> Iterator[KVCache]:
    with pool(url, 2) as opened, KVCache(opened, CODECS, LAYOUT, SCOPE, storage=storage) as cache:
        yield cache


def tokens(count: int) -> list[int]:
    return list(range(count))


def layers(count: int) -> list[LayerKV]:
    """Keys and values of so many tokens, at random."""
    numbers = np.random.default_rng(0)
    return [
        LayerKV(
            keys=numbers.standard_normal((shape.heads, count, shape.key_size), np.float32),
            values=numbers.standard_normal((shape.heads, count, shape.value_size), np.float32),
        )
        for shape in LAYOUT.layers
    ]
