"""The codec `planes`: what it saves, and what its body may not do."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zstandard

from arc_halo.codecs import planes
from arc_halo.errors import CodecError
from arc_halo.tensors.chunking import spans

DEMO = Path(__file__).parents[2] / "examples" / "weights" / "base" / "model.safetensors"
NUMBERS = np.random.Generator(np.random.PCG64(5))
WEIGHTS = NUMBERS.normal(scale=0.02, size=65536)


def demo_chunks() -> Iterator[bytes]:
    """The chunks of the demo's tensors, found without our own reader."""
    data = DEMO.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name, entry in header.items():
        if name != "__metadata__":
            low, high = (start + offset for offset in entry["data_offsets"])
            for offset, length in spans(high - low):
                yield data[low + offset : low + offset + length]


def encoded(raw: bytes, dtype: str) -> bytes:
    body = planes.encode(memoryview(raw), dtype=dtype)
    assert body is not None
    return body


def stored_bytes(raw: bytes, dtype: str) -> int:
    body = planes.encode(memoryview(raw), dtype=dtype)
    return len(raw if body is None else body)


def test_the_demos_bfloat16_weights_shrink_to_two_thirds() -> None:
    chunks = list(demo_chunks())
    ratio = sum(stored_bytes(chunk, "BF16") for chunk in chunks) / sum(map(len, chunks))
    assert 0.64 < ratio <= 0.67


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype", "limit"),
    [("BF16", ml_dtypes.bfloat16, 0.67), ("F16", "f2", 0.87), ("F32", "f4", 0.85)],
)
def test_normal_weights_shrink_as_measured(
    dtype: str, numpy_dtype: str | type, limit: float
) -> None:
    raw = WEIGHTS.astype(numpy_dtype).tobytes()
    assert len(encoded(raw, dtype)) <= limit * len(raw)


def test_float32_that_was_bfloat16_shrinks_to_little_more_than_half_of_that() -> None:
    raw = WEIGHTS.astype(ml_dtypes.bfloat16).astype(np.float32).tobytes()
    assert len(encoded(raw, "F32")) <= 0.36 * len(raw)


def test_an_exponent_plane_of_floats_beats_plain_zstandard() -> None:
    raw = WEIGHTS.astype(ml_dtypes.bfloat16).tobytes()
    assert len(encoded(raw, "BF16")) < 0.9 * len(zstandard.compress(raw, level=3))


def test_repetition_is_left_to_zstandard() -> None:
    raw = np.tile(NUMBERS.integers(0, 256, 1000, dtype=np.uint8), 100).tobytes()
    assert len(encoded(raw, "U8")) < 3000


def test_noise_is_not_worth_a_body() -> None:
    assert planes.encode(memoryview(NUMBERS.bytes(65536)), dtype="U8") is None
    assert planes.encode(memoryview(NUMBERS.bytes(65536)), dtype="F32") is None


def test_a_chunk_below_16_kib_is_not_worth_a_body() -> None:
    assert planes.encode(memoryview(bytes(16383)), dtype="BF16") is None
    assert planes.encode(memoryview(bytes(16384)), dtype="BF16") is not None


def test_a_body_reads_as_its_format_is_written_down() -> None:
    weights = WEIGHTS.astype(ml_dtypes.bfloat16)
    body = encoded(weights.tobytes(), "BF16")
    version, layout, size, low_mode, low, high_mode, high = struct.unpack_from("<BBIBIBI", body)
    assert (version, layout, size) == (1, 0x80 | 2, 131072)
    assert (low_mode, high_mode, len(body)) == (0, 1, 16 + low + high)
    bits = weights.view(np.uint16)
    assert body[16 : 16 + low] == (bits << 1 | bits >> 15).astype(np.uint8).tobytes()
    exponents = zstandard.decompress(body[16 + low :])
    assert exponents == (bits >> 7).astype(np.uint8).tobytes()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "C64", "I16", "U32", "I64"])
@pytest.mark.parametrize("extra", [1, 2, 4, 8])
def test_a_chunk_that_ends_inside_a_word_comes_back(dtype: str, extra: int) -> None:
    raw = WEIGHTS[:4096].tobytes() + bytes(range(extra))
    raw = np.sort(np.frombuffer(raw, np.uint8)).tobytes()
    out = bytearray(len(raw))
    planes.decode(memoryview(encoded(raw, dtype)), memoryview(out))
    assert out == raw


def test_memory_that_is_not_aligned_is_read_and_written() -> None:
    raw = WEIGHTS.astype(np.float32).tobytes()
    room = bytearray(b"\0" + raw)
    body = b"\0\0\0" + encoded(raw, "F32")
    assert planes.encode(memoryview(room)[1:], dtype="F32") == body[3:]
    room[:] = bytes(len(room))
    planes.decode(memoryview(body)[3:], memoryview(room)[1:])
    assert room == b"\0" + raw


def body_of(planes_: list[tuple[int, bytes]], *, word: int, size: int, version: int = 1) -> bytes:
    header = struct.pack("<BBI", version, word, size)
    header += b"".join(struct.pack("<BI", mode, len(data)) for mode, data in planes_)
    return header + b"".join(data for _, data in planes_)


FRAME = zstandard.compress(bytes(8))
CLAIMS_A_TERABYTE = bytes.fromhex("28b52ffd e0 0000000000010000 010000")
NO_CONTENT_SIZE = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(8))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(body_of([(1, FRAME)], word=1, size=8, version=2), id="format 2"),
        pytest.param(body_of([(1, FRAME)], word=0, size=8), id="word 0"),
        pytest.param(body_of([(1, FRAME)] * 3, word=3, size=24), id="word 3"),
        pytest.param(body_of([(1, FRAME)] * 2, word=2, size=15), id="half a word"),
        pytest.param(body_of([(1, FRAME)], word=1, size=9), id="another length"),
        pytest.param(body_of([(2, FRAME)], word=1, size=8), id="mode 2"),
        pytest.param(body_of([(2, bytes(8))], word=1, size=8), id="mode 2, right length"),
        pytest.param(body_of([(0, bytes(7))], word=1, size=8), id="short raw plane"),
        pytest.param(body_of([(0, bytes(9))], word=1, size=8), id="long raw plane"),
        pytest.param(body_of([(1, FRAME + FRAME)], word=1, size=8), id="two frames"),
        pytest.param(body_of([(1, FRAME[:-1])], word=1, size=8), id="short frame"),
        pytest.param(body_of([(1, b"")], word=1, size=8), id="no frame"),
        pytest.param(body_of([(1, CLAIMS_A_TERABYTE)], word=1, size=8), id="bomb"),
        pytest.param(body_of([(1, NO_CONTENT_SIZE)], word=1, size=8), id="unknown size"),
        pytest.param(body_of([(1, zstandard.compress(bytes(9)))], word=1, size=8), id="too much"),
        pytest.param(struct.pack("<BBIBI", 1, 1, 8, 0, 2**32 - 1) + bytes(8), id="4 GiB plane"),
        pytest.param(struct.pack("<BBIBI", 1, 8, 8, 0, 8) + bytes(8), id="missing entries"),
    ],
)
def test_a_crafted_body_is_a_codec_error(body: bytes) -> None:
    with pytest.raises(CodecError) as caught:
        planes.decode(memoryview(body), memoryview(bytearray(8)))
    assert caught.value.error_code == "AH062"


def test_the_crafted_bodies_are_one_step_from_a_good_one() -> None:
    out = bytearray(b"x" * 8)
    planes.decode(memoryview(body_of([(1, FRAME)], word=1, size=8)), memoryview(out))
    assert out == bytes(8)
