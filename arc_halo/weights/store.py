"""What the weights pipeline works with: connections, codecs, and its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from arc_halo.errors import InvalidInputError, UnknownPluginError
from arc_halo.store.rows import Pool
from arc_halo.types import ChunkBodies, TensorCodec

BATCH_BYTES = 4 * 1024 * 1024
"""Raw bytes that a writer gathers before it asks the database which of them are new."""

AUTO = "auto"
"""Chosen for each chunk: whatever makes it smallest of what its dtype gives reason to try."""

DELTA = "delta"

Advance = Callable[[int], None]
"""Told how many raw bytes were just dealt with; called from several threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBodies:
    """The open body store of a project, and the catalogue's number for it."""

    store_id: int
    bodies: ChunkBodies


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightStore:
    """The tensors of one database, for reading and writing.

    Memory held while streaming stays below `memory_bytes`, whatever the model's size. New bodies
    go to `bodies`, or into the database where there is none.
    """

    pool: Pool
    codecs: Mapping[str, TensorCodec]
    codec: str | None = None
    chunk_bytes: int = 262144
    memory_bytes: int = 256 * 1024 * 1024
    threads: int = 2
    bodies: OpenBodies | None = None

    @property
    def batch_bytes(self) -> int:
        """Raw bytes a thread may gather: raw, base, encoded and in flight, it holds four."""
        share = self.memory_bytes // (self.threads * 4)
        return max(1, min(BATCH_BYTES, share) // self.chunk_bytes) * self.chunk_bytes

    def find_codec(self, name: str) -> TensorCodec:
        try:
            return self.codecs[name]
        except KeyError:
            raise UnknownPluginError(
                f"no loaded plugin provides the tensor codec {name!r}",
                hint="install the package that wrote these tensors, or list its file in `plugins:`",
            ) from None


def check_needs_base(codec: TensorCodec, has_base: bool) -> None:
    """Refuse a codec that takes deltas where there is nothing to take them against."""
    if codec.needs_base and not has_base:
        raise InvalidInputError(
            f"the codec {codec.name!r} keeps deltas, and no model is named to take them against",
            hint="name one: `--delta-from MODEL`, or `weights.delta_from`",
            code="AH023",
        )


def no_progress(size_bytes: int) -> None:
    """An `Advance` that tells nobody."""
