"""Weight files into the database."""

from __future__ import annotations

import hashlib
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
    advance: Advance = no_progress,
) -> Built:
    """Make the weight set of the file at `path`, which `root` names, and return it.

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
        expected=root,
    )
    with weight_format.open(path) as reader:
        check_names(path, reader)

        def produce(tensor: TensorInfo) -> Iterator[memoryview]:
            return pieces(reader, tensor, min(store.batch_bytes, 1024 * 1024))

        return build(store, recipe, reader.tensors, produce, advance=advance)


def import_key(root: bytes) -> bytes:
    """The key of the build that imports weights of this root, from whatever file."""
    return hashlib.sha256(b"arc-halo/import/1\0" + root).digest()
