"""What a source of weights is: its root, known without reading it again while it stays the same."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arc_halo.errors import FormatError, WeightsError
from arc_halo.tensors import digests
from arc_halo.types import JsonObject, TensorInfo, WeightFormat, WeightReader

PIECE_BYTES = 1024 * 1024
CACHE_FORMAT = 1
MAX_NAME_BYTES = 2048

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """The identity of a source's weights, and what its format says beside them."""

    root: bytes
    metadata: dict[str, str]
    tensor_count: int
    size_bytes: int


class DigestCache:
    """Roots of weight files by path, size, time of change and inode, in one small file.

    A cache: whatever is wrong with its file, it is started anew.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: dict[str, JsonObject] = _load(path) if path else {}
        self._is_changed = False

    def get(self, path: Path, format_name: str) -> SourceFacts | None:
        """The facts on record, if the files are as they were then."""
        entry = self._entries.get(_entry_key(path, format_name))
        try:
            if not entry or not entry["files"] or entry["files"] != _stats(entry["files"]):
                return None
            if not all(entry["files"].values()):
                return None
            return SourceFacts(
                root=bytes.fromhex(entry["root"]),
                metadata=dict(entry["metadata"]),
                tensor_count=int(entry["tensor_count"]),
                size_bytes=int(entry["size_bytes"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def files(self, path: Path, format_name: str) -> list[Path]:
        """The files that the facts on record were read from."""
        return [Path(name) for name in self._entries[_entry_key(path, format_name)]["files"]]

    def known_files(self, path: Path, format_name: str) -> list[Path]:
        """The same; none, where there are no facts on record."""
        entry = self._entries.get(_entry_key(path, format_name), {})
        return [Path(name) for name in entry.get("files", ())]

    def put(
        self, path: Path, format_name: str, files: dict[str, list[int]], facts: SourceFacts
    ) -> None:
        self._entries[_entry_key(path, format_name)] = {
            "files": files,
            "root": facts.root.hex(),
            "metadata": facts.metadata,
            "tensor_count": facts.tensor_count,
            "size_bytes": facts.size_bytes,
        }
        self._is_changed = True

    def forget(self, path: Path, format_name: str) -> None:
        """Have the source read again, although its files look as they did."""
        if self._entries.pop(_entry_key(path, format_name), None) is not None:
            self._is_changed = True

    def save(self) -> None:
        """Write the cache back, atomically; where that cannot be done, go without."""
        if self._path is None or not self._is_changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".digests-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"format": CACHE_FORMAT, "sources": self._entries}, file)
            Path(name).replace(self._path)
        except OSError:
            return
        self._is_changed = False


def source_facts(
    path: Path,
    weight_format: WeightFormat,
    cache: DigestCache,
    *,
    roots: Sequence[Path] = (),
    advance: Advance | None = None,
) -> SourceFacts:
    """The facts of the source at `path`, hashed now unless the cache knows them.

    Every file of it, each shard too, must lie under one of `roots` once symlinks are resolved.
    Raises `FormatError` for a broken file and `WeightsError` for one that changes meanwhile.
    """
    known = cache.get(path, weight_format.name)
    if known is not None:
        _check_contained(cache.files(path, weight_format.name), roots)
        return known
    with weight_format.open(path) as reader:
        _check_contained(reader.files, roots)
        check_names(path, reader)
        before = _file_stats(reader.files)
        facts = _hash(reader, advance)
        if _file_stats(reader.files) != before:
            raise WeightsError(f"{path} changed while it was read", hint="run the command again")
    cache.put(path, weight_format.name, before, facts)
    return facts


def check_names(path: Path, reader: WeightReader) -> None:
    """Refuse tensor names that no index of the database can hold."""
    for tensor in reader.tensors:
        if (length := len(tensor.name.encode())) > MAX_NAME_BYTES:
            raise FormatError(
                f"{path.name}: tensor {tensor.name[:40]!r}… cannot be stored: its name has "
                f"{length} bytes, at most {MAX_NAME_BYTES} may be"
            )


def pieces(reader: WeightReader, tensor: TensorInfo, buffer: memoryview) -> Iterator[memoryview]:
    """The tensor's raw bytes in order, each piece in `buffer` until the next is asked for."""
    for offset in range(0, tensor.size_bytes, len(buffer)):
        out = buffer[: min(len(buffer), tensor.size_bytes - offset)]
        reader.read_into(tensor.name, offset, out)
        yield out


def _hash(reader: WeightReader, advance: Advance | None) -> SourceFacts:
    named = []
    buffer = memoryview(bytearray(PIECE_BYTES))
    for tensor in reader.tensors:
        hasher = digests.TensorHasher(tensor.dtype, tensor.shape)
        for piece in pieces(reader, tensor, buffer):
            hasher.update(piece)
            if advance is not None:
                advance(len(piece))
        named.append((tensor.name, hasher.digest()))
    return SourceFacts(
        root=digests.weights_root(named),
        metadata=dict(reader.metadata),
        tensor_count=len(named),
        size_bytes=sum(tensor.size_bytes for tensor in reader.tensors),
    )


def _check_contained(files: Sequence[Path], roots: Sequence[Path]) -> None:
    for file in files if roots else ():
        real = file.resolve()
        if not any(root in real.parents for root in roots):
            raise FormatError(
                f"{file} leads to {real}, outside of the project",
                hint=f"allow its directory: `--allow-path {shlex.quote(str(real.parent))}`",
                code="AH012",
            )


def _entry_key(path: Path, format_name: str) -> str:
    return f"{format_name}:{path}"


def _file_stats(files: Sequence[Path]) -> dict[str, list[int]]:
    return _stats({str(path): [] for path in files})


def _stats(files: dict[str, list[int]]) -> dict[str, list[int]]:
    """Size, time of change in nanoseconds and inode of each file; a missing one is empty."""
    found: dict[str, list[int]] = {}
    for name in files:
        try:
            stat = Path(name).stat()
            found[name] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        except OSError:
            found[name] = []
    return found


def _load(path: Path) -> dict[str, JsonObject]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict) or data.get("format") != CACHE_FORMAT:
        return {}
    sources = data.get("sources")
    return sources if isinstance(sources, dict) else {}
