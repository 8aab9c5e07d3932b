"""Two models compared tensor by tensor; what is equal is never read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from arc_halo.fusion.compatibility import is_computable
from arc_halo.fusion.inputs import Input, scan_inputs
from arc_halo.store import builds, integrity
from arc_halo.store.builds import NamedTensor
from arc_halo.weights.spans import StoredTensor
from arc_halo.weights.store import Advance, WeightStore, no_progress

if TYPE_CHECKING:
    from arc_halo.types import FloatArray

Change = Literal["added", "removed", "changed", "reshaped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far two tensors of one shape are apart, as vectors.

    `norm` is that of their difference, `relative` over that of the first, `largest` its largest
    element; `changed_share` is of the elements. What is not defined (a tensor is zero), or beyond
    float64, is None.
    """

    norm: float | None
    relative: float | None
    largest: float | None
    cosine: float | None
    changed_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A tensor that is not the same in both. `shared_bytes` are of chunks that both have.

    There is a `distance` where shape and dtype are the same, and floats.
    """

    name: str
    change: Change
    first: str | None
    second: str | None
    size_bytes: int
    shared_bytes: int = 0
    distance: Distance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All differences in the order of names, and what is equal."""

    differences: Sequence[Difference]
    equal_tensors: int
    equal_bytes: int

    @property
    def is_equal(self) -> bool:
        return not self.differences


def compare(
    store: WeightStore, first_id: int, second_id: int, *, advance: Advance = no_progress
) -> Comparison:
    """Compare two weight sets. Of a tensor that differs both sides are read, part by part.

    `advance` is told the raw bytes of tensors that were read. Raises `FusionError` for a tensor
    with NaN or infinities.
    """
    with store.pool.connection() as conn:
        first = {tensor.name: tensor for tensor in builds.set_tensors(conn, first_id)}
        second = {tensor.name: tensor for tensor in builds.set_tensors(conn, second_id)}
    equal = [t for t in first.values() if t.name in second and second[t.name].digest == t.digest]
    same = {tensor.name for tensor in equal}
    names = sorted((first.keys() | second.keys()) - same)
    return Comparison(
        differences=tuple(
            _difference(store, name, first.get(name), second.get(name), advance) for name in names
        ),
        equal_tensors=len(equal),
        equal_bytes=sum(tensor.size_bytes for tensor in equal),
    )


def bytes_to_read(store: WeightStore, first_id: int, second_id: int) -> int:
    """The raw bytes of the first set's tensors that `compare` will read."""
    with store.pool.connection() as conn:
        first = builds.set_tensors(conn, first_id)
        second = {tensor.name: tensor for tensor in builds.set_tensors(conn, second_id)}
    pairs = ((tensor, second.get(tensor.name)) for tensor in first)
    return sum(a.size_bytes for a, b in pairs if b is not None and _are_comparable(a, b))


def _difference(
    store: WeightStore,
    name: str,
    first: NamedTensor | None,
    second: NamedTensor | None,
    advance: Advance,
) -> Difference:
    one = first or second
    assert one is not None
    kinds = [None if t is None else f"{t.dtype} {list(t.shape)}" for t in (first, second)]
    if first is None or second is None:
        return Difference(
            name=name,
            change="added" if first is None else "removed",
            first=kinds[0],
            second=kinds[1],
            size_bytes=one.size_bytes,
        )
    is_same_kind = kinds[0] == kinds[1]
    return Difference(
        name=name,
        change="changed" if is_same_kind else "reshaped",
        first=kinds[0],
        second=kinds[1],
        size_bytes=second.size_bytes,
        shared_bytes=_shared_bytes(store, first, second),
        distance=_distance(store, first, second, advance)
        if _are_comparable(first, second)
        else None,
    )


def _are_comparable(first: NamedTensor, second: NamedTensor) -> bool:
    return (
        first.digest != second.digest
        and first.dtype == second.dtype
        and first.shape == second.shape
        and is_computable(first.dtype)
    )


def _shared_bytes(store: WeightStore, first: NamedTensor, second: NamedTensor) -> int:
    with store.pool.connection() as conn:
        found = {item.id: item for item in integrity.chunk_lists(conn, [first.id, second.id])}
    has = {bytes(digest) for digest in found[first.id].digests}
    item = found[second.id]
    return sum(
        min(item.chunk_bytes, item.size_bytes - index * item.chunk_bytes)
        for index, digest in enumerate(item.digests)
        if bytes(digest) in has
    )


def _distance(
    store: WeightStore, first: NamedTensor, second: NamedTensor, advance: Advance
) -> Distance:
    import numpy as np

    sums, largest, changed, count = np.zeros(4), 0.0, 0, 0
    for one, two in _parts(store, first, second):
        with np.errstate(over="ignore", invalid="ignore"):
            change = np.subtract(two, one, dtype=np.float64)
            pairs = ((change, change), (one, one), (two, two), (one, two))
            sums += [float(np.add.reduce(np.multiply(a, b, dtype=np.float64))) for a, b in pairs]
        largest = max(largest, float(np.abs(change).max()))
        changed += int(np.count_nonzero(change))
        count += change.size
    advance(first.size_bytes)
    gap, square, other, product = map(float, sums)
    lengths = math.sqrt(square) * math.sqrt(other)
    return Distance(
        norm=_finite(math.sqrt(gap)),
        relative=_finite(math.sqrt(gap / square)) if 0 < square < math.inf else None,
        largest=_finite(largest),
        cosine=_finite(product / lengths) if 0 < lengths < math.inf else None,
        changed_share=changed / count,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _parts(
    store: WeightStore, first: NamedTensor, second: NamedTensor
) -> Iterator[tuple[FloatArray, FloatArray]]:
    window = store.memory_bytes // 8
    inputs = [
        Input(tensor.name, tensor.name, StoredTensor(store, tensor, tensor.name), window)
        for tensor in (first, second)
    ]
    for block in scan_inputs(inputs, None, first.shape, "elements"):
        yield block.tensors[0], block.tensors[1]
