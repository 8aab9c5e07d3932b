"""Weight sets of plain bytes, made and read back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from arc_halo.store import builds
from arc_halo.types import TensorInfo
from arc_halo.weights.building import Recipe, build
from arc_halo.weights.reading import read_array
from arc_halo.weights.store import WeightStore

Raw = Mapping[str, bytes]


def noise(seed: str, size: int) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(size)


def infos(raw: Raw) -> list[TensorInfo]:
    return [
        TensorInfo(name=name, dtype="U8", shape=(len(data),), size_bytes=len(data))
        for name, data in raw.items()
    ]


def made(store: WeightStore, raw: Raw, key: str | None = None, **fields: Any) -> bytes:
    """The root of a weight set of these tensors; equal keys are one recipe."""
    digest = hashlib.sha256((key or repr(sorted(raw.items()))).encode()).digest()
    recipe = Recipe(purpose="write", key=digest, recipe={}, **fields)
    return build(store, recipe, infos(raw), lambda info: [raw[info.name]]).root


def stored(store: WeightStore, root: bytes) -> dict[str, bytes]:
    """What the set of that root reads as."""
    with store.pool.connection() as conn:
        rows = builds.set_tensors(conn, builds.sets_by_root(conn, [root])[root].id)
    return {row.name: read_array(store, row, row.name).tobytes() for row in rows}
