"""Words split into byte planes, and the body that holds the planes: shared by our float codecs.

The body is little-endian and describes itself:

    1 byte   format, 1
    1 byte   bytes in a word (1, 2, 4 or 8), plus 0x80 where the codec transformed floats
    4 bytes  raw length, a multiple of the word
    then for each plane, from the lowest byte of the word to the highest
    1 byte   mode: 0 the plane's bytes, 1 a Zstandard frame of them
    4 bytes  length
    then the planes in the same order.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from arc_halo.codecs._frames import Frames, damaged
from arc_halo.tensors.dtypes import DTYPES

FORMAT = 1
FLAG = 0x80
RAW, ZSTD = 0, 1
MAX_BYTES = 2**32 - 1
PROBE_BYTES = 4096
PLANE_PAYS = 0.97
FAST_PAYS = 0.9

Bytes: TypeAlias = NDArray[np.uint8]
Words: TypeAlias = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a chunk is read: bytes in a word, and whether the words are floats to transform."""

    word: int
    floats: bool

    def view(self, data: Bytes) -> Words:
        """Those bytes as little-endian words, no copy."""
        return data.view(np.dtype(f"<u{self.word}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A body taken apart: each plane's mode and data, from the lowest byte to the highest."""

    layout: Layout
    planes: Sequence[tuple[int, memoryview]]


class Scratch(threading.local):
    """Two arrays a thread, kept from chunk to chunk: fresh memory costs more than the work."""

    def __init__(self) -> None:
        self._buffers = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def get(self, index: int, size_bytes: int) -> Bytes:
        if size_bytes > _KEPT_BYTES:
            return np.empty(size_bytes, np.uint8)
        if self._buffers[index].size < size_bytes:
            self._buffers[index] = np.empty(size_bytes, np.uint8)
        return self._buffers[index][:size_bytes]


def layout_of(dtype: str, size_bytes: int) -> Layout:
    """The words of a chunk of that dtype; bytes where elements share them or one is cut off."""
    known = DTYPES.get("F32" if dtype == "C64" else dtype)
    if known is None or known.item_bytes < 1 or size_bytes % known.item_bytes:
        return Layout(word=1, floats=False)
    return Layout(word=known.item_bytes, floats=known.is_float)


def encode(words: Words, planes: Bytes, layout: Layout) -> bytes | None:
    """The body of those words, or None where it would be no shorter than they are.

    Both arrays are written over. `planes`, of as many bytes as the words, is where they are split.
    """
    size_bytes, size = words.nbytes, words.size
    parts = []
    for index in range(layout.word):
        plane = planes[index * size : (index + 1) * size]
        if index:
            np.right_shift(words, 8, out=words)
        np.copyto(plane, words, casting="unsafe")
        parts.append(_pack(plane))
    header = _HEADER.pack(FORMAT, layout.word | layout.floats * FLAG, size_bytes)
    entries = [_ENTRY.pack(mode, len(data)) for mode, data in parts]
    if len(header) + sum(len(entry) for entry in entries) + _length(parts) >= size_bytes:
        return None
    return b"".join([header, *entries, *(data for _, data in parts)])


def parse(body: memoryview, size_bytes: int, *, codec: str) -> Parsed:
    """A body of `size_bytes` raw bytes taken apart; CodecError, named after `codec`, otherwise."""
    body = memoryview(body).cast("B")
    try:
        version, layout, raw_bytes = _HEADER.unpack_from(body)
        word = layout & ~FLAG
        if version != FORMAT or word not in (1, 2, 4, 8) or raw_bytes % word:
            raise damaged(codec, "the body does not begin as one of format 1 does")
        entries = [
            _ENTRY.unpack_from(body, _HEADER.size + index * _ENTRY.size) for index in range(word)
        ]
    except struct.error as exc:
        raise damaged(codec, "the body ends within its header") from exc
    if raw_bytes != size_bytes:
        raise damaged(codec, f"the body is of {raw_bytes} bytes where {size_bytes} belong")
    planes = _cut(body, _HEADER.size + word * _ENTRY.size, entries, codec)
    return Parsed(layout=Layout(word=word, floats=bool(layout & FLAG)), planes=planes)


def join(parsed: Parsed, words: Words, part: Words, *, codec: str) -> None:
    """Fill `words` from the planes; `part`, as large, is written over. CodecError for damage."""
    unpacked = [_unpack(mode, data, words.size, codec) for mode, data in parsed.planes]
    np.copyto(words, unpacked[-1])
    for plane in reversed(unpacked[:-1]):
        np.left_shift(words, 8, out=words)
        np.copyto(part, plane)
        np.bitwise_or(words, part, out=words)


_HEADER = struct.Struct("<BBI")
_ENTRY = struct.Struct("<BI")
_KEPT_BYTES = 2**20
_frames = Frames()


def _length(parts: Sequence[tuple[int, bytes | memoryview]]) -> int:
    return sum(len(data) for _, data in parts)


def _pack(plane: Bytes) -> tuple[int, bytes | memoryview]:
    # Noise needs no probe: Zstandard looks at a few bytes of it and gives up.
    frame = _frames.huffman.compress(plane.data)
    start = max(0, (plane.size - PROBE_BYTES) // 2)
    probe = plane[start : start + PROBE_BYTES].data
    fast = len(_frames.fast.compress(probe))
    if fast * plane.size < FAST_PAYS * len(frame) * len(probe):
        frame = min(frame, _frames.fast.compress(plane.data), key=len)
    if len(frame) < PLANE_PAYS * plane.size:
        return ZSTD, frame
    return RAW, plane.data


def _cut(
    body: memoryview, offset: int, entries: Sequence[tuple[int, int]], codec: str
) -> list[tuple[int, memoryview]]:
    if offset + sum(length for _, length in entries) != len(body):
        raise damaged(codec, "the planes are not as long as the body's header says")
    planes = []
    for mode, length in entries:
        planes.append((mode, body[offset : offset + length]))
        offset += length
    return planes


def _unpack(mode: int, data: memoryview, size: int, codec: str) -> Bytes:
    if mode == ZSTD:
        return np.frombuffer(_frames.decompress(data, size, codec=codec), np.uint8)
    if mode != RAW or len(data) != size:
        raise damaged(codec, "a plane has an unknown mode or a wrong length")
    return np.frombuffer(data, np.uint8)
