"""The header of a safetensors file and the index of a sharded model: strictly parsed, and built.

Whatever is wrong, the reader gets one `FormatError` that names the file and, where there is one,
the tensor.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from arc_halo.errors import FormatError
from arc_halo.names import is_storable
from arc_halo.tensors.dtypes import MAX_SIZE_BYTES, describe, size_bytes
from arc_halo.types import JsonObject, TensorInfo

MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor and where its bytes begin, counted from the end of the header."""

    info: TensorInfo
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """All tensors in the order of their bytes."""

    metadata: Mapping[str, str]
    entries: tuple[Entry, ...]


def parse_header(text: bytes, data_bytes: int, file: str) -> Header:
    """The header of a file with `data_bytes` after it: no hole, no overlap, no remainder."""
    if not text.startswith(b"{"):
        refuse(file, "the header does not begin with '{'")
    document = _parse_json(text, file)
    metadata = _check_metadata(document.pop(METADATA_KEY, {}), file)
    entries = [_parse_entry(name, entry, file) for name, entry in document.items()]
    # A stable sort: empty tensors of one place keep the order of the header.
    entries.sort(key=lambda entry: (entry.offset, entry.info.size_bytes))
    _check_coverage(entries, data_bytes, file)
    return Header(metadata=metadata, entries=tuple(entries))


def build_header(tensors: Sequence[TensorInfo], metadata: Mapping[str, str], file: str) -> bytes:
    """The header of these tensors one after the other, padded with spaces to 8 bytes."""
    _check_metadata(dict(metadata), file)
    document: JsonObject = {METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for tensor in tensors:
        if tensor.name in document or tensor.name == METADATA_KEY:
            refuse(file, "the name is reserved or given twice", tensor=tensor.name)
        document[tensor.name] = _build_entry(tensor, offset, file)
        offset += tensor.size_bytes
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER_BYTES:
        refuse(file, f"the header would be longer than {MAX_HEADER_BYTES:,} bytes")
    return text + b" " * (-len(text) % 8)


def parse_index(text: bytes, file: str) -> dict[str, str]:
    """The index's `weight_map`: the shard's file name of each tensor, plain names all."""
    weight_map = _parse_json(text, file).get("weight_map")
    if not isinstance(weight_map, dict):
        refuse(file, "there is no object 'weight_map'")
    for name, shard in weight_map.items():
        check_text(name, file, name)
        if not isinstance(shard, str) or not _is_plain_name(shard):
            refuse(file, "its shard is not the name of a file beside the index", tensor=name)
    return weight_map


def check_text(text: str, file: str, tensor: str | None = None) -> None:
    """Refuse a name or a text that cannot be stored."""
    # PostgreSQL can store neither; better said here than at the first INSERT.
    if not is_storable(text):
        refuse(file, f"the text {_quote(text)} has a NUL or half a character", tensor=tensor)


def refuse(file: str, what: str, *, tensor: str | None = None) -> NoReturn:
    """Raise the FormatError that says so."""
    where = f"{file}: " if tensor is None else f"{file}: tensor {_quote(tensor)}: "
    raise FormatError(where + what, hint=_HINT)


_HINT = "get or export the file again, or check it with the program that wrote it"
_MAX_DTYPE_LENGTH = 32
_FIELDS = {"dtype", "shape", "data_offsets"}


def _parse_json(text: bytes, file: str) -> JsonObject:
    def unique(pairs: list[tuple[str, Any]]) -> JsonObject:
        members = dict(pairs)
        if len(members) != len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            refuse(file, f"the key {_quote(twice)} stands twice in one JSON object")
        return members

    try:
        document = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{file}: the JSON is broken: {exc}", hint=_HINT) from exc
    if not isinstance(document, dict):
        refuse(file, "the JSON is not an object")
    return document


def _check_metadata(metadata: object, file: str) -> dict[str, str]:
    if metadata is None:  # null says "none", to the safetensors library too
        return {}
    if not isinstance(metadata, dict):
        refuse(file, f"{METADATA_KEY} is not an object of strings")
    for key, value in metadata.items():
        if not isinstance(value, str):
            refuse(file, f"{METADATA_KEY}: the value of {_quote(key)} is not a string")
        check_text(key, file)
        check_text(value, file)
    return metadata


def _parse_entry(name: str, entry: object, file: str) -> Entry:
    check_text(name, file, name)
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        refuse(file, f"its entry does not have exactly {', '.join(sorted(_FIELDS))}", tensor=name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or len(dtype) > _MAX_DTYPE_LENGTH:
        refuse(file, "its dtype is not a short string", tensor=name)
    if not _are_counts(shape):
        refuse(file, "its shape is not a list of whole numbers from 0 to 2**63 - 1", tensor=name)
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(file, "its data_offsets are not a begin and an end", tensor=name)
    size = _size_bytes(name, dtype, shape, file)
    if offsets[1] - offsets[0] != size:
        what = f"it has {offsets[1] - offsets[0]} bytes, {describe(dtype, shape)} {size}"
        refuse(file, what, tensor=name)
    info = TensorInfo(name=name, dtype=dtype, shape=tuple(shape), size_bytes=size)
    return Entry(info=info, offset=offsets[0])


def _build_entry(tensor: TensorInfo, offset: int, file: str) -> JsonObject:
    check_text(tensor.name, file, tensor.name)
    if tensor.size_bytes != _size_bytes(tensor.name, tensor.dtype, tensor.shape, file):
        refuse(file, "its size is not that of its dtype and shape", tensor=tensor.name)
    return {
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "data_offsets": [offset, offset + tensor.size_bytes],
    }


def _size_bytes(name: str, dtype: str, shape: Sequence[int], file: str) -> int:
    try:
        return size_bytes(dtype, shape)
    except FormatError as exc:
        message = f"{file}: tensor {_quote(name)}: {exc.message}"
        raise FormatError(message, hint=exc.hint or _HINT) from exc


def _check_coverage(entries: Sequence[Entry], data_bytes: int, file: str) -> None:
    end = 0
    for entry in entries:
        if entry.offset != end:
            what = "overlaps the one before" if entry.offset < end else "leaves a hole before it"
            refuse(
                file, f"it {what}: it begins at {entry.offset}, not {end}", tensor=entry.info.name
            )
        end += entry.info.size_bytes
    if end != data_bytes:
        what = f"{data_bytes} bytes follow the header, its tensors have {end}"
        refuse(file, what + (": the file is cut off" if data_bytes < end else ""))


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= MAX_SIZE_BYTES for item in value
    )


def _is_plain_name(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}


def _quote(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}…"
