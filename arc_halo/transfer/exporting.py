"""Weights out of the database into files that other tools load."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from arc_halo.errors import ArcHaloError
from arc_halo.formats import sharding
from arc_halo.formats._files import replacing
from arc_halo.store import builds, tokenizers
from arc_halo.store.models import ModelRecord
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject, ReadChunks, TensorInfo, WeightFormat
from arc_halo.weights.reading import read_pieces
from arc_halo.weights.store import Advance, WeightStore, no_progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written; of a sharded model the index is the first of the files."""

    files: tuple[Path, ...]
    tensor_count: int
    size_bytes: int


def export_weights(
    store: WeightStore,
    weight_set_id: int,
    path: Path,
    weight_format: WeightFormat,
    *,
    metadata: Mapping[str, str],
    max_shard_bytes: int | None = None,
    advance: Advance = no_progress,
) -> Exported:
    """Write a weight set to `path`, every digest verified on the way.

    What has more data than `max_shard_bytes` goes into shards with an index beside `path`. Files
    appear complete or not at all, all shards before the index, and what is there of an earlier
    export to `path` is replaced. Raises `ArcHaloError` where the format cannot be written so.
    """
    check_writable(weight_format, is_sharded=max_shard_bytes is not None)
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

    shards = [tensors] if max_shard_bytes is None else sharding.split(tensors, max_shard_bytes)
    if len(shards) == 1:
        _write(weight_format, path, tensors, metadata, read)
        files = [path]
    else:
        files = _write_shards(weight_format, path, shards, metadata, read)
    _remove(each for each in sharding.files_of(path) if each not in files)
    return Exported(
        files=tuple(files),
        tensor_count=len(tensors),
        size_bytes=sum(tensor.size_bytes for tensor in tensors),
    )


def check_writable(weight_format: WeightFormat, *, is_sharded: bool) -> None:
    """Raise `ArcHaloError` unless the format can be written, in shards if it is to be so."""
    if weight_format.write is None:
        raise ArcHaloError(
            f"the format {weight_format.name!r} cannot be written",
            hint="export as safetensors",
            code="AH032",
        )
    if is_sharded and not any(s.endswith(sharding.INDEX_SUFFIX) for s in weight_format.suffixes):
        raise ArcHaloError(
            f"the format {weight_format.name!r} has no shards",
            hint="leave out `--max-shard-size`, or export as safetensors",
            code="AH032",
        )


def weights_path(directory: Path, weight_format: WeightFormat) -> Path:
    """Where a model is exported to in a directory: `model.safetensors`, `model.npz`."""
    return directory / f"model{weight_format.suffixes[0]}"


def export_config(architecture: JsonObject, path: Path) -> None:
    """Write a model's architecture as a `config.json`, atomically."""
    text = json.dumps(architecture, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def tokenizer_of(conn: Connection, record: ModelRecord) -> bytes | None:
    """The document of a model's tokenizer, if it has one."""
    if record.tokenizer_digest is None:
        return None
    digest = bytes(record.tokenizer_digest)
    return tokenizers.documents(conn, [digest]).get(digest)


def export_tokenizer(document: bytes, path: Path) -> None:
    """Write a model's `tokenizer.json`, byte by byte as it was, atomically."""
    with replacing(path) as file:
        file.write(document)


def _write(
    weight_format: WeightFormat,
    path: Path,
    tensors: Sequence[TensorInfo],
    metadata: Mapping[str, str],
    read: ReadChunks,
) -> None:
    assert weight_format.write is not None
    weight_format.write(path, tensors, metadata, read)


def _write_shards(
    weight_format: WeightFormat,
    path: Path,
    shards: Sequence[Sequence[TensorInfo]],
    metadata: Mapping[str, str],
    read: ReadChunks,
) -> list[Path]:
    """Write all shards aside, then move them into place, then write the index."""
    paths = sharding.shard_paths(path, len(shards))
    index = sharding.index_path(path)
    with _directory_beside(path) as aside:
        for shard, target in zip(shards, paths, strict=True):
            _write(weight_format, aside / target.name, shard, metadata, read)
        if any(target.exists() for target in paths):
            # Its shards are about to change one by one: never may it lead to some of each.
            _remove([index])
        for target in paths:
            _move(aside / target.name, target)
    with replacing(index) as file:
        named = [(target.name, shard) for target, shard in zip(paths, shards, strict=True)]
        file.write(sharding.index_text(named).encode())
    return [index, *paths]


@contextmanager
def _directory_beside(path: Path) -> Iterator[Path]:
    """A hidden directory on the disk of `path`, gone afterwards with what is in it."""
    try:
        directory = tempfile.TemporaryDirectory(
            dir=path.parent, prefix=".", suffix=".tmp", ignore_cleanup_errors=True
        )
    except OSError as exc:
        raise _cannot_write(path, exc) from exc
    with directory as name:
        yield Path(name)


def _move(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as exc:
        raise _cannot_write(target, exc) from exc


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise _cannot_write(path, exc) from exc


def _cannot_write(path: Path, exc: OSError) -> ArcHaloError:
    return ArcHaloError(
        f"{path}: cannot be written: {exc.strerror or exc}",
        hint="check the directory, its rights and the space on its disk",
        code="AH015",
    )
