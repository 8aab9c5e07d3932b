"""Reading a checkpoint back: its weights and states, every digest verified."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arc_halo.errors import CheckpointError, CorruptChunkError
from arc_halo.store import builds
from arc_halo.store import checkpoints as store_of
from arc_halo.store.checkpoints import Checkpoint, StateRow
from arc_halo.training.checkpoints.snapshots import FORMAT
from arc_halo.training.checkpoints.states import Leaf, unflatten
from arc_halo.weights.reading import read_array, read_arrays
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What was read of a checkpoint: the weights, if asked for, and the leaves of states."""

    weights: Arrays
    leaves: Mapping[str, list[Leaf]]

    def state(self, part: str) -> Any:
        """A state, put together again."""
        return unflatten(self.leaves[part])


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A checkpoint with the list of its states; no tensor is read yet."""

    checkpoint: Checkpoint
    rows: Sequence[StateRow]

    @property
    def parts(self) -> set[str]:
        """Which parts it has."""
        weights = {"model"} if self.checkpoint.weight_set_id is not None else set()
        return weights | {row.component for row in self.rows}


def look(store: WeightStore, checkpoint: Checkpoint) -> Listed:
    """What a checkpoint has. Raises `CheckpointError` for a format that is not known."""
    written = checkpoint.training_state.get("format")
    if written != FORMAT:
        raise CheckpointError(
            f"the checkpoint's state is written in format {written!r}, this program reads {FORMAT}",
            hint="use the version of Arc-Halo that wrote it, or a newer one",
        )
    with store.pool.connection() as conn:
        return Listed(checkpoint=checkpoint, rows=store_of.state(conn, checkpoint.id))


def read(store: WeightStore, listed: Listed, parts: Collection[str]) -> Contents:
    """Those of `parts` that the checkpoint has. Of the others no tensor is read.

    Raises `CorruptChunkError` and `MissingChunkError`, both naming the tensor.
    """
    checkpoint = listed.checkpoint
    wanted = [row for row in listed.rows if row.component in parts]
    names = {row.tensor for row in wanted if row.tensor is not None}
    arrays = _read_set(store, checkpoint.state_set_id, names)
    leaves: dict[str, list[Leaf]] = defaultdict(list)
    for row in wanted:
        leaves[row.component].append(_leaf(row, arrays))
    weights: Arrays = {}
    if "model" in parts and checkpoint.weight_set_id is not None:
        weights = _read_set(store, checkpoint.weight_set_id, None)
    return Contents(weights=weights, leaves=dict(leaves))


def _leaf(row: StateRow, arrays: Arrays) -> Leaf:
    if row.tensor is not None and row.tensor not in arrays:
        raise CorruptChunkError(f"tensor {row.tensor!r} is missing from the checkpoint's state")
    array = None if row.tensor is None else arrays[row.tensor]
    return Leaf(path=row.path, value=row.value, array=array)


def _read_set(
    store: WeightStore, weight_set_id: int | None, names: Collection[str] | None
) -> Arrays:
    """The tensors of a set, or those of these names."""
    if weight_set_id is None or (names is not None and not names):
        return {}
    with store.pool.connection() as conn:
        rows = builds.set_tensors(conn, weight_set_id)
    chosen = [row for row in rows if names is None or row.name in names]
    if len(chosen) == len(rows):
        return read_arrays(store, weight_set_id, rows)
    return {row.name: read_array(store, row, row.name) for row in chosen}
