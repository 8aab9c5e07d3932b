"""Arrays of reactors in the tensor store: what was fitted, and large answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from arc_halo.reactors.records import canonical
from arc_halo.store import builds
from arc_halo.tensors import dtypes
from arc_halo.types import JsonObject
from arc_halo.weights.arrays import build_arrays
from arc_halo.weights.building import Recipe
from arc_halo.weights.reading import read_arrays
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]


def store_arrays(store: WeightStore, arrays: Arrays, facts: JsonObject) -> bytes:
    """Store arrays as a weight set of their own; its root. `facts` say what for.

    Equal ones of the same facts are there once. Whoever wants them kept has to point to the set.
    """
    raw = {name: dtypes.raw_bytes(array) for name, array in arrays.items()}
    facts = {**facts, "tensors": {n: hashlib.sha256(raw[n]).hexdigest() for n in raw}}
    key = hashlib.sha256(b"arc-halo/reactor-arrays/1\0" + canonical(facts)).digest()
    recipe = Recipe(purpose="write", key=key, recipe=facts)
    return build_arrays(store, recipe, arrays).root


def load_arrays(store: WeightStore, weight_set_id: int) -> Arrays:
    """The arrays of a set by name, every digest verified."""
    with store.pool.connection() as conn:
        rows = builds.set_tensors(conn, weight_set_id)
    return read_arrays(store, weight_set_id, rows)
