"""Two checkpoints compared: every tensor of weights and states, and the values between them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from arc_halo.store import builds, integrity
from arc_halo.store import checkpoints as store_of
from arc_halo.store.builds import NamedTensor
from arc_halo.store.checkpoints import Checkpoint
from arc_halo.training.checkpoints import scalars
from arc_halo.training.checkpoints.distances import Distance, is_measurable, measure
from arc_halo.training.checkpoints.states import describe_path
from arc_halo.weights.store import Advance, WeightStore, no_progress

Change = Literal["added", "removed", "changed", "reshaped"]
Key = tuple[str, str]
"""A part of a checkpoint, and the name or path of something in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """A tensor that is not the same in both. `shared_bytes` are of chunks that the first has too.

    Without a `distance` there is nothing to measure: another shape, or a generator's state.
    """

    part: str
    name: str
    change: Change
    first: str | None
    second: str | None
    size_bytes: int
    shared_bytes: int = 0
    distance: Distance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueChange:
    """A value that is no tensor, such as a learning rate, as Python writes it."""

    part: str
    path: str
    first: str | None
    second: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDiff:
    """All that differs, and what is equal. `size_bytes` are the second's."""

    tensors: Sequence[TensorChange]
    values: Sequence[ValueChange]
    equal_tensors: int
    equal_bytes: int
    size_bytes: int

    @property
    def is_equal(self) -> bool:
        return not self.tensors and not self.values

    @property
    def shared_bytes(self) -> int:
        """Raw bytes of the second that are stored with the first, and only once."""
        return self.equal_bytes + sum(each.shared_bytes for each in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a checkpoint consists of, not read yet."""

    tensors: Mapping[Key, NamedTensor]
    values: Mapping[Key, str]


def look(store: WeightStore, checkpoint: Checkpoint) -> Contents:
    """The tensors of a checkpoint and the values of its states, by part and name."""
    with store.pool.connection() as conn:
        rows = store_of.state(conn, checkpoint.id)
        weights, states = (
            {} if set_id is None else {each.name: each for each in builds.set_tensors(conn, set_id)}
            for set_id in (checkpoint.weight_set_id, checkpoint.state_set_id)
        )
    tensors = {("model", name): tensor for name, tensor in weights.items()}
    values = {}
    for row in rows:
        key = row.component, _described(row.path)
        if row.tensor is not None and row.tensor in states:
            tensors[key] = states[row.tensor]
        elif row.value is not None and (value := _value(row.value)) is not None:
            values[key] = value
    return Contents(tensors=tensors, values=values)


def bytes_to_read(first: Contents, second: Contents) -> int:
    """The raw bytes that `compare` tells of while it goes on."""
    both = first.tensors.keys() & second.tensors.keys()
    return sum(
        first.tensors[key].size_bytes
        for key in both
        if _is_read(key, first.tensors[key], second.tensors[key])
    )


def compare(
    store: WeightStore, first: Contents, second: Contents, *, advance: Advance = no_progress
) -> CheckpointDiff:
    """Compare two checkpoints. What has one digest is equal, and never read."""
    mine, other = first.tensors, second.tensors
    same = {key for key in mine.keys() & other.keys() if mine[key].digest == other[key].digest}
    keys = sorted((mine.keys() | other.keys()) - same, key=_place)
    return CheckpointDiff(
        tensors=tuple(_tensor(store, key, mine.get(key), other.get(key), advance) for key in keys),
        values=tuple(_changed_values(first.values, second.values)),
        equal_tensors=len(same),
        equal_bytes=sum(mine[key].size_bytes for key in same),
        size_bytes=sum(each.size_bytes for each in other.values()),
    )


def _tensor(
    store: WeightStore,
    key: Key,
    first: NamedTensor | None,
    second: NamedTensor | None,
    advance: Advance,
) -> TensorChange:
    one = first or second
    assert one is not None
    told = TensorChange(
        part=key[0],
        name=key[1],
        change="added" if first is None else "removed",
        first=_kind(first),
        second=_kind(second),
        size_bytes=one.size_bytes,
    )
    if first is None or second is None:
        return told
    is_read = _is_read(key, first, second)
    return replace(
        told,
        change="changed" if told.first == told.second else "reshaped",
        size_bytes=second.size_bytes,
        shared_bytes=_shared_bytes(store, first, second),
        distance=measure(store, first, second, key[1], advance=advance) if is_read else None,
    )


def _kind(tensor: NamedTensor | None) -> str | None:
    return None if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _is_read(key: Key, first: NamedTensor, second: NamedTensor) -> bool:
    """Generators' states are numbers only by accident."""
    return key[0] != "rng" and first.digest != second.digest and is_measurable(first, second)


def _shared_bytes(store: WeightStore, first: NamedTensor, second: NamedTensor) -> int:
    with store.pool.connection() as conn:
        found = {each.id: each for each in integrity.chunk_lists(conn, [first.id, second.id])}
    has = set(map(bytes, found[first.id].digests))
    listed = found[second.id]
    return sum(
        min(listed.chunk_bytes, listed.size_bytes - index * listed.chunk_bytes)
        for index, digest in enumerate(listed.digests)
        if bytes(digest) in has
    )


def _changed_values(first: Mapping[Key, str], second: Mapping[Key, str]) -> list[ValueChange]:
    return [
        ValueChange(
            part=part, path=path, first=first.get((part, path)), second=second.get((part, path))
        )
        for part, path in sorted(first.keys() | second.keys(), key=_place)
        if first.get((part, path)) != second.get((part, path))
    ]


def _place(key: Key) -> tuple[bool, str, str]:
    """The model comes first."""
    return key[0] != "model", *key


def _described(path: str) -> str:
    return describe_path([scalars.decode(key) for key in json.loads(path)])


def _value(text: str) -> str | None:
    """A value as Python writes it; None for a container, which its entries tell of."""
    found: Any = json.loads(text)
    try:
        return repr(scalars.decode(found))
    except ValueError:
        return None
