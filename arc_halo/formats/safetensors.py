"""The weight format `safetensors`: one file, or shards with an index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from arc_halo.errors import FormatError
from arc_halo.formats._files import open_regular, read_exactly, read_some, replacing
from arc_halo.formats._header import (
    MAX_HEADER_BYTES,
    Header,
    build_header,
    parse_header,
    refuse,
)
from arc_halo.formats._index import check_weight_map, find_model, read_weight_map
from arc_halo.formats.sharding import INDEX_SUFFIX
from arc_halo.hookspecs import hookimpl
from arc_halo.types import ReadChunks, TensorInfo, WeightFormat

SUFFIX = ".safetensors"

_LENGTH_BYTES = 8
_LFS_POINTER = b"version https://git-lfs"


@hookimpl
def arc_halo_weight_formats() -> Iterator[WeightFormat]:
    yield WeightFormat(
        name="safetensors",
        version=1,
        summary="safetensors, one file or sharded with an index",
        suffixes=(SUFFIX, SUFFIX + INDEX_SUFFIX),
        open=open_safetensors,
        write=write_safetensors,
    )


class SafetensorsReader:
    """An open model. Tensors come shard by shard in name order, each in the order of its bytes.

    Reads go straight into the caller's memory and may run in several threads. The metadata are
    those of all shards; where two disagree on a key, the first one's word counts.
    """

    def __init__(self, shards: Sequence[Shard], files: Sequence[Path]) -> None:
        self._places = {
            entry.info.name: (shard, entry) for shard in shards for entry in shard.header.entries
        }
        self._files = tuple(files)
        self._metadata: dict[str, str] = {}
        for shard in reversed(shards):
            self._metadata.update(shard.header.metadata)

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        return [entry.info for _, entry in self._places.values()]

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._metadata

    @property
    def files(self) -> Sequence[Path]:
        return self._files

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        """Fill `out` with the tensor's bytes from `offset` on; both must lie within the tensor.

        Raises `FormatError` (AH063) when the file has meanwhile become shorter.
        """
        shard, entry = self._places[name]
        if offset < 0 or offset + out.nbytes > entry.info.size_bytes:
            raise ValueError(f"{name!r} has no {out.nbytes} bytes at {offset}")
        shard.read_into(entry.offset + offset, out)


@contextmanager
def open_safetensors(path: Path) -> Iterator[SafetensorsReader]:
    """Open a `.safetensors` file, an `.index.json`, or the directory that holds either.

    Raises `FormatError` for anything that breaks the format, before the first byte of a tensor
    is read. Shards must lie beside the index; symlinks among them are followed, and `files`
    names everything that is read.
    """
    with ExitStack() as stack:
        file = _find(path) if path.is_dir() else path
        if file.name.endswith(INDEX_SUFFIX):
            yield _open_sharded(file, stack)
        else:
            yield SafetensorsReader([_open_shard(file, stack)], [file])


def write_safetensors(
    path: Path, tensors: Sequence[TensorInfo], metadata: Mapping[str, str], read: ReadChunks
) -> None:
    """Write one file in the order of `tensors`; it appears complete or not at all.

    Raises `FormatError` for tensors that cannot stand in one file and for a `read` that gives
    another number of bytes than the tensor has.
    """
    header = build_header(tensors, metadata, str(path))
    with replacing(path) as file:
        file.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
        for tensor in tensors:
            written = sum(file.write(piece) for piece in read(tensor))
            if written != tensor.size_bytes:
                what = f"{written} bytes came to be written, not {tensor.size_bytes}"
                refuse(str(path), what, tensor=tensor.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One open file: its tensors, and where their bytes begin."""

    path: Path
    descriptor: int
    data_offset: int
    header: Header

    def read_into(self, offset: int, out: memoryview) -> None:
        rest = out.cast("B") if out.nbytes else out
        position = self.data_offset + offset
        while rest.nbytes:
            count = read_some(self.descriptor, rest, position, self.path)
            rest, position = rest[count:], position + count


def _find(directory: Path) -> Path:
    return find_model(directory, usual=f"model{SUFFIX}", suffixes=(SUFFIX,))


def _open_sharded(index: Path, stack: ExitStack) -> SafetensorsReader:
    weight_map = read_weight_map(index)
    names = sorted(set(weight_map.values()))
    shards = [_open_shard(index.parent / name, stack, of=index) for name in names]
    held = ((shard.path, (e.info.name for e in shard.header.entries)) for shard in shards)
    check_weight_map(weight_map, held, index)
    return SafetensorsReader(shards, [index, *(shard.path for shard in shards)])


def _open_shard(path: Path, stack: ExitStack, *, of: Path | None = None) -> Shard:
    descriptor, size_bytes = open_regular(path, stack, of=of)
    if size_bytes < _LENGTH_BYTES:
        refuse(str(path), f"{size_bytes} bytes are no safetensors file")
    length = read_exactly(descriptor, _LENGTH_BYTES, 0, path)
    if length == _LFS_POINTER[:_LENGTH_BYTES]:
        raise FormatError(
            f"{path}: it is a pointer of Git LFS, not the file itself", hint="run `git lfs pull`"
        )
    header_bytes = int.from_bytes(length, "little")
    data_offset = _LENGTH_BYTES + header_bytes
    if header_bytes > MAX_HEADER_BYTES or data_offset > size_bytes:
        refuse(str(path), f"its header cannot have {header_bytes} bytes")
    text = read_exactly(descriptor, header_bytes, _LENGTH_BYTES, path)
    header = parse_header(text, size_bytes - data_offset, str(path))
    return Shard(path=path, descriptor=descriptor, data_offset=data_offset, header=header)
