"""Weights out of the database into files that other tools load."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from arc_halo.errors import ArcHaloError
from arc_halo.store import builds
from arc_halo.types import JsonObject, TensorInfo, WeightFormat
from arc_halo.weights.reading import read_pieces
from arc_halo.weights.store import Advance, WeightStore, no_progress


def export_weights(
    store: WeightStore,
    weight_set_id: int,
    path: Path,
    weight_format: WeightFormat,
    *,
    metadata: Mapping[str, str],
    advance: Advance = no_progress,
) -> list[TensorInfo]:
    """Write a weight set to one file, every digest verified on the way; returns its tensors.

    The file appears at `path` complete or not at all.
    """
    if weight_format.write is None:
        raise ArcHaloError(
            f"the format {weight_format.name!r} cannot be written",
            hint="export as safetensors",
            code="AH032",
        )
    with store.pool.connection() as conn:
        rows = {row.name: row for row in builds.set_tensors(conn, weight_set_id)}
    tensors = [
        TensorInfo(
            name=row.name, dtype=row.dtype, shape=tuple(row.shape), size_bytes=row.size_bytes
        )
        for row in rows.values()
    ]

    def read(tensor: TensorInfo) -> Iterator[memoryview]:
        for piece in read_pieces(store, rows[tensor.name], tensor.name):
            yield piece
            advance(len(piece))

    weight_format.write(path, tensors, metadata, read)
    return tensors


def export_config(architecture: JsonObject, path: Path) -> None:
    """Write a model's architecture as a `config.json`, atomically."""
    text = json.dumps(architecture, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".config-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).chmod(0o644)
    Path(name).replace(path)
