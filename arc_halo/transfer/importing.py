"""Weight files into the database."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

from arc_halo.tensors import digests
from arc_halo.transfer.sources import check_names, pieces
from arc_halo.types import TensorInfo, WeightFormat
from arc_halo.weights.building import Built, Recipe, build
from arc_halo.weights.store import Advance, WeightStore, no_progress


def import_weights(
    store: WeightStore,
    path: Path,
    weight_format: WeightFormat,
    root: bytes,
    *,
    label: str,
    project: str | None = None,
    codec: str | None = None,
    delta_from: bytes | None = None,
    advance: Advance = no_progress,
) -> Built:
    """Make the weight set of the file at `path`, which `root` names, and return it.

    Chunks are kept as deltas against the weights of root `delta_from` where that pays.

    Raises `WeightsError` when the file's bytes are no longer those.
    """
    recipe = Recipe(
        purpose="import",
        key=import_key(root),
        recipe={
            "source": label,
            "format": weight_format.name,
            "root": digests.format_digest(root),
        },
        project=project,
        codec=codec,
        delta_from=delta_from,
        expected=root,
    )
    with weight_format.open(path) as reader:
        check_names(path, reader)

        # One buffer a thread: fresh memory costs more than what is read into it.
        local = threading.local()

        def produce(tensor: TensorInfo) -> Iterator[memoryview]:
            if not hasattr(local, "buffer"):
                local.buffer = memoryview(bytearray(store.batch_bytes))
            return pieces(reader, tensor, local.buffer)

        return build(store, recipe, reader.tensors, produce, advance=advance)


def import_key(root: bytes) -> bytes:
    """The key of the build that imports weights of this root, from whatever file."""
    return hashlib.sha256(b"arc-halo/import/1\0" + root).digest()
