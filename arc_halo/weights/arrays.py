"""Arrays in memory, made weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from arc_halo.tensors import dtypes
from arc_halo.types import TensorInfo
from arc_halo.weights.building import Built, Recipe, build
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray


def build_arrays(store: WeightStore, recipe: Recipe, arrays: Mapping[str, NDArray[Any]]) -> Built:
    """Make a weight set of arrays by their names, in the order in which they come.

    Raises what `build` does, and `FormatError` for a dtype that is not stored.
    """
    infos = [
        TensorInfo(
            name=name,
            dtype=dtypes.name_of(array.dtype),
            shape=tuple(array.shape),
            size_bytes=array.nbytes,
        )
        for name, array in arrays.items()
    ]
    return build(store, recipe, infos, lambda info: [dtypes.raw_bytes(arrays[info.name])])


def fresh_key() -> bytes:
    """The key of a build that is its own: what another left unfinished may be of other values."""
    return hashlib.sha256(b"arc-halo/write/1\0" + uuid4().bytes).digest()
