"""Activations of nobody's model, put where captures put theirs."""

from __future__ import annotations

import numpy as np

from arc_halo.inference.inputs import given_parts, input_digest
from arc_halo.store import activations as store_of
from arc_halo.store.activations import Key, NewEntry
from arc_halo.tensors import digests, dtypes
from arc_halo.weights.arrays import build_arrays, fresh_key
from arc_halo.weights.building import Recipe

ROOT, STRUCTURE = b"r" * 32, b"s" * 32
NAME = "layers.0"


def put(store, ids, array, *, budget=2**40, ttl=None, selection=None, name=NAME, **key):
    """Enter an activation of some tokens; how many entries are new, and how many went."""
    build_arrays(store, Recipe(purpose="write", key=fresh_key(), recipe={}), {name: array})
    raw = dtypes.raw_bytes(array)
    entry = NewEntry(
        key=key_of(ids, **key),
        layer_name=name,
        selection=selection or {},
        digest=digests.tensor_digest(dtypes.name_of(array.dtype), array.shape, raw),
    )
    with store.pool.connection() as conn, conn.transaction():
        store_of.lock(conn)
        return store_of.insert(conn, [entry], ttl), store_of.evict(conn, budget)


def key_of(ids, *, root=ROOT, structure=STRUCTURE):
    return Key(
        weights_root=root,
        structure_digest=structure,
        input_digest=input_digest(given_parts(ids)),
    )


def values(seed, tokens=4):
    return np.random.default_rng(seed).normal(size=(1, tokens, 8)).astype(np.float32)
