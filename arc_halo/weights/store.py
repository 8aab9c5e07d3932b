"""What the weights pipeline works with: connections, codecs, and its limits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from arc_halo.errors import UnknownPluginError
from arc_halo.store.rows import Pool
from arc_halo.tensors import dtypes
from arc_halo.types import TensorCodec

BATCH_BYTES = 4 * 1024 * 1024
"""Raw bytes that a writer gathers before it asks the database which of them are new."""

Advance = Callable[[int], None]
"""Told how many raw bytes were just dealt with; called from several threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightStore:
    """The tensors of one database, for reading and writing.

    Memory held while streaming stays below `memory_bytes`, whatever the model's size.
    """

    pool: Pool
    codecs: Mapping[str, TensorCodec]
    codec: str | None = None
    chunk_bytes: int = 262144
    memory_bytes: int = 256 * 1024 * 1024
    threads: int = 2

    @property
    def batch_bytes(self) -> int:
        """Raw bytes a thread may gather: raw, encoded and in flight, each thread holds three."""
        share = self.memory_bytes // (self.threads * 4)
        return max(self.chunk_bytes, min(BATCH_BYTES, share))

    def codec_for(self, dtype: str, wanted: str | None) -> TensorCodec:
        """The codec asked for, or `planes` for floats and `zstd` for the rest."""
        name = wanted or self.codec
        if name is None:
            name = "planes" if dtypes.get_dtype(dtype).is_float else "zstd"
        return self.find_codec(name)

    def find_codec(self, name: str) -> TensorCodec:
        try:
            return self.codecs[name]
        except KeyError:
            raise UnknownPluginError(
                f"no loaded plugin provides the tensor codec {name!r}",
                hint="install the package that wrote these tensors, or list its file in `plugins:`",
            ) from None


class Cancellation:
    """Lets the threads of a pipeline stop early when one of them fails or the user interrupts."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def is_cancelled(self) -> bool:
        return self._event.is_set()


def no_progress(size_bytes: int) -> None:
    """An `Advance` that tells nobody."""
