r"""The codec `planes`: floats split into byte planes, each coded by what pays for it.

Trained weights have little to repeat, but their exponents are few: gathered in a plane of their
own they shrink to a third, and the mantissas, which are noise, are kept as they are. For bfloat16
that is two thirds of the bytes.

The body is little-endian and describes itself:

    1 byte   format, 1
    1 byte   bytes in a word (1, 2, 4 or 8), plus 0x80 where words are rotated
    4 bytes  raw length, a multiple of the word
    then for each plane, from the lowest byte of the word to the highest
    1 byte   mode: 0 the plane's bytes, 1 a Zstandard frame of them
    4 bytes  length
    then the planes in the same order.

A rotated word stands one bit to the left, the sign at the bottom, so that its top byte is the
exponent alone (with the first bits of the mantissa where the exponent is shorter).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import zstandard
from numpy.typing import NDArray

from arc_halo.codecs._frames import Frames, damaged
from arc_halo.hookspecs import hookimpl
from arc_halo.tensors.dtypes import DTYPES
from arc_halo.types import TensorCodec

FORMAT = 1
ROTATED = 0x80
RAW, ZSTD = 0, 1
MIN_BYTES = 16384
MAX_BYTES = 2**32 - 1
PROBE_BYTES = 16384
PROBE_PAYS = 0.97
FAST_PAYS = 0.9

Bytes: TypeAlias = NDArray[np.uint8]
Words: TypeAlias = NDArray[np.unsignedinteger[Any]]


@hookimpl
def arc_halo_tensor_codecs() -> Iterator[TensorCodec]:
    yield TensorCodec(
        name="planes",
        version=1,
        summary="byte planes of floats, lossless; bfloat16 to about two thirds",
        encode=encode,
        decode=decode,
    )


def encode(raw: memoryview, *, dtype: str) -> bytes | None:
    """The body of a chunk of that dtype, or None where it would be no shorter than the chunk.

    A chunk that ends inside a word is taken as bytes; one below 16 KiB is not worth a body.
    """
    size_bytes = raw.nbytes
    if not MIN_BYTES <= size_bytes <= MAX_BYTES:
        return None
    word, rotate = _layout(dtype, size_bytes)
    parts = [_pack(plane) for plane in _split(np.frombuffer(raw, np.uint8), word, rotate=rotate)]
    header = _HEADER.pack(FORMAT, word | rotate * ROTATED, size_bytes)
    entries = [_ENTRY.pack(mode, len(data)) for mode, data in parts]
    body = b"".join([header, *entries, *(data for _, data in parts)])
    return body if len(body) < size_bytes else None


def decode(body: memoryview, out: memoryview) -> None:
    """Fill `out` from a body; CodecError for a damaged body or one of another length."""
    word, rotate, planes = _parse(body, out.nbytes)
    size = out.nbytes // word
    _join([_unpack(mode, data, size) for mode, data in planes], out, word, rotate=rotate)


class _Scratch(threading.local):
    """Two arrays a thread, kept from chunk to chunk: fresh memory costs more than the work."""

    def __init__(self) -> None:
        self._buffers = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def get(self, index: int, size_bytes: int) -> Bytes:
        if size_bytes > _KEPT_BYTES:
            return np.empty(size_bytes, np.uint8)
        if self._buffers[index].size < size_bytes:
            self._buffers[index] = np.empty(size_bytes, np.uint8)
        return self._buffers[index][:size_bytes]


_HEADER = struct.Struct("<BBI")
_ENTRY = struct.Struct("<BI")
_KEPT_BYTES = 2**20
_frames = Frames()
_scratch = _Scratch()


def _layout(dtype: str, size_bytes: int) -> tuple[int, bool]:
    """The word to split a chunk by, and whether its words are rotated."""
    known = DTYPES.get("F32" if dtype == "C64" else dtype)
    if known is None or known.item_bytes < 2 or size_bytes % known.item_bytes:
        return 1, False
    return known.item_bytes, known.is_float


def _split(raw: Bytes, word: int, *, rotate: bool) -> Iterator[Bytes]:
    """The planes from low to high; each is valid until the next is asked for."""
    if word == 1:
        yield raw
        return
    kind = np.dtype(f"<u{word}")
    words: Words = raw.view(kind)
    shifted: Words = _scratch.get(0, raw.size).view(kind)
    plane = _scratch.get(1, words.size)
    if rotate:
        np.left_shift(words, 1, out=shifted)
        np.bitwise_or(shifted, words >> (word * 8 - 1), out=shifted)
    else:
        shifted[:] = words
    for index in range(word):
        if index:
            np.right_shift(shifted, 8, out=shifted)
        np.copyto(plane, shifted, casting="unsafe")
        yield plane


def _pack(plane: Bytes) -> tuple[int, bytes]:
    compressor = _choose(plane)
    if compressor is not None:
        frame = compressor.compress(plane.data)
        if len(frame) < plane.size:
            return ZSTD, frame
    return RAW, plane.tobytes()


def _choose(plane: Bytes) -> zstandard.ZstdCompressor | None:
    """What pays for a plane, judged by a probe of its middle; None where nothing does."""
    start = max(0, (plane.size - PROBE_BYTES) // 2)
    probe = plane[start : start + PROBE_BYTES].data
    huffman = len(_frames.huffman.compress(probe))
    fast = len(_frames.fast.compress(probe))
    if min(huffman, fast) >= PROBE_PAYS * probe.nbytes:
        return None
    return _frames.fast if fast < FAST_PAYS * huffman else _frames.huffman


def _parse(body: memoryview, size_bytes: int) -> tuple[int, bool, list[tuple[int, memoryview]]]:
    body = memoryview(body).cast("B")
    try:
        version, layout, raw_bytes = _HEADER.unpack_from(body)
        word, rotate = layout & ~ROTATED, bool(layout & ROTATED)
        if version != FORMAT or word not in (1, 2, 4, 8) or raw_bytes % word:
            raise damaged("planes", "the body does not begin as one of format 1 does")
        entries = [
            _ENTRY.unpack_from(body, _HEADER.size + index * _ENTRY.size) for index in range(word)
        ]
    except struct.error as exc:
        raise damaged("planes", "the body ends within its header") from exc
    if raw_bytes != size_bytes:
        raise damaged("planes", f"the body is of {raw_bytes} bytes where {size_bytes} belong")
    return word, rotate, _cut(body, _HEADER.size + word * _ENTRY.size, entries)


def _cut(
    body: memoryview, offset: int, entries: Sequence[tuple[int, int]]
) -> list[tuple[int, memoryview]]:
    if offset + sum(length for _, length in entries) != len(body):
        raise damaged("planes", "the planes are not as long as the body's header says")
    planes = []
    for mode, length in entries:
        planes.append((mode, body[offset : offset + length]))
        offset += length
    return planes


def _unpack(mode: int, data: memoryview, size: int) -> Bytes:
    if mode == ZSTD:
        return np.frombuffer(_frames.decompress(data, size, codec="planes"), np.uint8)
    if mode != RAW or len(data) != size:
        raise damaged("planes", "a plane has an unknown mode or a wrong length")
    return np.frombuffer(data, np.uint8)


def _join(planes: Sequence[Bytes], out: memoryview, word: int, *, rotate: bool) -> None:
    raw = np.frombuffer(out, np.uint8)
    if word == 1:
        raw[:] = planes[0]
        return
    kind = np.dtype(f"<u{word}")
    words: Words = raw.view(kind)
    part: Words = _scratch.get(0, raw.size).view(kind)
    words[:] = planes[-1]
    for plane in reversed(planes[:-1]):
        np.left_shift(words, 8, out=words)
        np.copyto(part, plane)
        np.bitwise_or(words, part, out=words)
    if rotate:
        np.left_shift(words, word * 8 - 1, out=part)
        np.right_shift(words, 1, out=words)
        np.bitwise_or(words, part, out=words)
