"""What deltas are taken against: the tensor of the same name in another weight set."""

from __future__ import annotations

from collections.abc import Sequence

from arc_halo.errors import CodecError
from arc_halo.store import builds, chunks
from arc_halo.store.builds import NamedTensor
from arc_halo.store.rows import Connection
from arc_halo.types import TensorInfo
from arc_halo.weights.decoding import decode_base, with_bodies
from arc_halo.weights.encoding import Base
from arc_halo.weights.store import WeightStore


class Bases:
    """The tensors of a weight set that others may be stored as deltas against."""

    def __init__(self, store: WeightStore, tensors: Sequence[NamedTensor]) -> None:
        self._store = store
        self._tensors = {tensor.name: tensor for tensor in tensors}

    @classmethod
    def of_root(cls, store: WeightStore, root: bytes | None) -> Bases:
        """Those of the set named `root`; none where it is not stored."""
        if root is None:
            return cls(store, [])
        with store.pool.connection() as conn:
            found = builds.sets_by_root(conn, [root]).get(root)
            return cls(store, builds.set_tensors(conn, found.id) if found else [])

    def read(self, conn: Connection, tensor: TensorInfo, indexes: Sequence[int]) -> dict[int, Base]:
        """The bases of some of a tensor's chunks, by index; where there is none, none.

        Where the base's own chunk is a delta, its base is taken: so deltas stay one deep.
        """
        base = self._tensors.get(tensor.name)
        if base is None or not self._fits(base, tensor):
            return {}
        found: dict[int, Base] = {}
        for chunk in with_bodies(self._store, chunks.read_chunks(conn, base.id, indexes)):
            plain = chunk.base or chunk.encoded
            if plain is None:
                continue
            try:
                found[chunk.index] = Base(digest=plain.digest, raw=decode_base(self._store, plain))
            except CodecError:
                # A damaged base is for `verify` to tell; the chunk is stored without one.
                continue
        return found

    def _fits(self, base: NamedTensor, tensor: TensorInfo) -> bool:
        return (
            base.dtype == tensor.dtype
            and base.size_bytes == tensor.size_bytes
            and base.chunk_bytes == self._store.chunk_bytes
        )
