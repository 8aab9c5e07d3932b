"""The codec `delta`: what it saves, what its body holds, and what it may not do."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.codecs import delta, planes
from arc_halo.errors import CodecError
from arc_halo.tensors.chunking import spans
from arc_halo.tensors.dtypes import DTYPES

DEMO = Path(__file__).parents[2] / "examples" / "weights"
NUMBERS = np.random.Generator(np.random.PCG64(6))
SIZE = 8192
FLOATS = dict.fromkeys(["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], 1)
FLOATS |= {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "C64": 4}
INTEGERS = {"U8": 1, "I8": 1, "BOOL": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
BYTES = {"F8_E8M0": 1, "F4": 1, "F6_E2M3": 1, "F6_E3M2": 1}
WORDS = {**FLOATS, **INTEGERS, **BYTES}


def encode(raw: bytes, base: bytes, dtype: str) -> bytes | None:
    return delta.encode(memoryview(raw), dtype=dtype, base=memoryview(base))


def encoded(raw: bytes, base: bytes, dtype: str) -> bytes:
    body = encode(raw, base, dtype)
    assert body is not None
    return body


def decoded(body: bytes, base: bytes) -> bytes:
    out = bytearray(len(base))
    delta.decode(memoryview(body), memoryview(out), base=memoryview(base))
    return bytes(out)


def specials(word: int) -> list[int]:
    """Bit patterns at the edges of every float format: zeros, infinities, NaNs with payloads."""
    top = 1 << (word * 8)
    edges = {0, 1, 2, top // 2, top // 2 + 1, top // 2 - 1, top - 1, top - 2}
    for exponent in {1: (0x78, 0x7C), 2: (0x7C00, 0x7F80), 4: (0x7F800000,), 8: (0x7FF << 52,)}[
        word
    ]:
        edges |= {exponent - 1, exponent, exponent + 1, exponent | 0x55 & (top // 2 - 1)}
    return sorted(edges | {edge ^ top // 2 for edge in edges})


def folded(raw: bytes, base: bytes, word: int, *, floats: bool) -> list[int]:
    """What the body's planes must add up to, in integers without bounds."""

    def place(data: bytes, offset: int) -> int:
        bits = int.from_bytes(data[offset : offset + word], "little")
        if not floats:
            return bits
        sign, size = bits >> (word * 8 - 1), bits & ((1 << (word * 8 - 1)) - 1)
        return -1 - size if sign else size

    def fold(change: int) -> int:
        change = (change + (1 << (word * 8 - 1))) % (1 << (word * 8)) - (1 << (word * 8 - 1))
        return -2 * change - 1 if change < 0 else 2 * change

    offsets = range(0, len(raw), word)
    return [fold(place(raw, offset) - place(base, offset)) for offset in offsets]


def words_of(body: bytes) -> list[int]:
    """The words that a body's planes add up to, read as the format is written down."""
    version, layout, size_bytes = struct.unpack_from("<BBI", body)
    word, found, offset = layout & 0x7F, [], 6 + 5 * (layout & 0x7F)
    assert version == 1
    for index in range(word):
        mode, length = struct.unpack_from("<BI", body, 6 + 5 * index)
        data = body[offset : offset + length]
        found.append(data if mode == 0 else zstandard.decompress(data))
        offset += length
    assert offset == len(body)
    assert {len(plane) for plane in found} == {size_bytes // word}
    return [int.from_bytes(bytes(column), "little") for column in zip(*found, strict=True)]


@pytest.mark.parametrize("dtype", sorted(WORDS))
def test_the_planes_hold_the_folded_differences(dtype: str) -> None:
    word, floats = WORDS[dtype], dtype in FLOATS
    some = specials(word)

    @given(data=st.lists(st.tuples(st.sampled_from(some), st.sampled_from(some)), min_size=1))
    def check(data: list[tuple[int, int]]) -> None:
        repeats = -(-SIZE // (word * len(data)))
        raw = b"".join(one.to_bytes(word, "little") for one, _ in data) * repeats
        base = b"".join(other.to_bytes(word, "little") for _, other in data) * repeats
        raw, base = raw[:SIZE], base[:SIZE]
        body = encoded(raw, base, dtype)
        assert body[1] == word | floats * 0x80
        assert words_of(body) == folded(raw, base, word, floats=floats)
        assert decoded(body, base) == raw

    check()


def test_every_dtype_is_known_here() -> None:
    assert sorted(WORDS) == sorted(DTYPES)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(delta.MIN_BYTES, delta.MIN_BYTES + 70),
    share=st.floats(0, 1),
    dtype=st.sampled_from(sorted(DTYPES)),
)
def test_chunks_of_any_length_come_back(seed: int, size: int, share: float, dtype: str) -> None:
    numbers = np.random.Generator(np.random.PCG64(seed))
    base = np.frombuffer(numbers.bytes(size), np.uint8)
    kept = numbers.random(size) < share
    raw = np.where(kept, base, numbers.integers(0, 256, size, dtype=np.uint8)).tobytes()
    body = encode(raw, base.tobytes(), dtype)
    assert body is None or decoded(body, base.tobytes()) == raw
    assert body is not None or share < 0.5


@pytest.mark.parametrize("extra", [1, 2, 3, 4, 7])
def test_a_chunk_that_ends_inside_a_word_is_a_delta_of_bytes(extra: int) -> None:
    base = NUMBERS.bytes(SIZE + extra)
    raw = base[:100] + b"\0" + base[101:]
    body = encoded(raw, base, "F64")
    assert body[1] == (1 if extra % 8 else 8)
    assert decoded(body, base) == raw


STEPS = [
    pytest.param(-0.0, 0.0, 2, id="up across zero"),
    pytest.param(0.0, -0.0, 1, id="down across zero"),
    pytest.param(1.0, 1.0078125, 2, id="up"),
    pytest.param(1.0, 0.99609375, 1, id="down into the next exponent"),
    pytest.param(-1.0, -0.99609375, 2, id="up into the next exponent, below zero"),
    pytest.param(np.inf, -np.inf, 510, id="the long way, round the end of the word"),
]


@pytest.mark.parametrize(("before", "after", "expected"), STEPS)
def test_a_small_step_is_a_small_number(before: float, after: float, expected: int) -> None:
    words = np.array([before, after]).astype(ml_dtypes.bfloat16).view(np.uint16)
    base, raw = (np.full(SIZE // 2, word).tobytes() for word in words)
    assert set(words_of(encoded(raw, base, "BF16"))) == {expected}


def test_a_chunk_that_is_its_base_costs_next_to_nothing() -> None:
    raw = NUMBERS.bytes(262144)
    for dtype in WORDS:
        assert len(encoded(raw, raw, dtype)) < 300


@pytest.mark.parametrize("dtype", ["BF16", "F32", "I64"])
def test_few_changes_cost_a_few_bytes_each(dtype: str) -> None:
    base = np.frombuffer(NUMBERS.bytes(262144), np.uint8)
    raw = base.copy()
    raw[:: 262144 // 64] ^= 1
    assert len(encoded(raw.tobytes(), base.tobytes(), dtype)) < 64 * 16


def test_where_it_does_not_pay_there_is_no_body() -> None:
    raw, base = NUMBERS.bytes(SIZE), NUMBERS.bytes(SIZE)
    assert encode(raw, base, "BF16") is None
    assert encode(raw, raw[:-2], "BF16") is None
    assert encode(raw, raw + b"\0\0", "BF16") is None
    assert encode(raw[:4095], raw[:4095], "BF16") is None
    assert encode(raw[:4096], raw[:4096], "BF16") is not None


def test_memory_that_is_not_aligned_is_read_and_written() -> None:
    base = NUMBERS.normal(size=2048).astype(np.float32)
    raw = (base * np.float32(1.00001)).tobytes()
    body = b"\0" + encoded(raw, base.tobytes(), "F32")
    room = bytearray(b"\0\0\0" + raw)
    base_room = memoryview(b"\0" + base.tobytes())[1:]
    assert delta.encode(memoryview(room)[3:], dtype="F32", base=base_room) == body[1:]
    room[:] = bytes(len(room))
    delta.decode(memoryview(body)[1:], memoryview(room)[3:], base=base_room)
    assert room == b"\0\0\0" + raw


def tensors(name: str) -> Mapping[str, bytes]:
    """The demo's tensors, read without our own reader."""
    data = (DEMO / name / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    offsets = {key: entry["data_offsets"] for key, entry in header.items()}
    return {key: data[start + low : start + high] for key, (low, high) in offsets.items()}


def pairs(name: str) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a fine-tune, each with its base's."""
    bases = tensors("base")
    for key, raw in tensors(name).items():
        for offset, length in spans(len(raw)):
            yield raw[offset : offset + length], bases[key][offset : offset + length]


def xor_bytes(raw: bytes, base: bytes) -> int:
    """What XOR and the same coder of planes make of it, rotated or not, whichever is smaller."""
    change = np.bitwise_xor(np.frombuffer(raw, np.uint8), np.frombuffer(base, np.uint8))
    bodies = [planes.encode(change.data, dtype=dtype) for dtype in ("BF16", "U16")]
    return min(len(raw if body is None else body) for body in bodies)


@pytest.mark.parametrize("name", ["python", "scripture"])
def test_the_demos_fine_tunes_are_smaller_than_by_xor(name: str) -> None:
    ours = theirs = alone = 0
    for raw, base in pairs(name):
        body = encode(raw, base, "BF16")
        ours += len(raw if body is None else body)
        theirs += xor_bytes(raw, base)
        single = planes.encode(memoryview(raw), dtype="BF16")
        alone += len(raw if single is None else single)
        assert body is None or decoded(body, base) == raw
    assert 0.5 * theirs < ours <= 0.95 * theirs
    assert ours <= 0.81 * alone


GOOD = struct.pack("<BBIBI", 1, 1, 8, 0, 8) + bytes(8)
NOT_GOOD = {
    "format 2": b"\2" + GOOD[1:],
    "word 0": GOOD[:1] + b"\0" + GOOD[2:],
    "word 16": GOOD[:1] + b"\x10" + GOOD[2:],
    "another length": GOOD[:2] + b"\x09" + GOOD[3:],
    "mode 2": GOOD[:6] + b"\2" + GOOD[7:],
    "a frame that is none": GOOD[:6] + b"\1" + GOOD[7:],
    "short": GOOD[:-1],
    "long": GOOD + b"\0",
    "half a header": GOOD[:5],
    "empty": b"",
}


@pytest.mark.parametrize("body", NOT_GOOD.values(), ids=NOT_GOOD)
def test_a_crafted_body_is_a_codec_error(body: bytes) -> None:
    with pytest.raises(CodecError, match=r"^delta: ") as caught:
        decoded(body, bytes(8))
    assert caught.value.error_code == "AH062"


def test_the_crafted_bodies_are_one_step_from_a_good_one() -> None:
    assert decoded(GOOD, b"abcdefgh") == b"abcdefgh"


@pytest.mark.parametrize("size_bytes", [0, 7, 9, 16])
def test_a_base_of_another_length_is_a_codec_error(size_bytes: int) -> None:
    with pytest.raises(CodecError, match=f"the base has {size_bytes} bytes where 8 belong"):
        delta.decode(memoryview(GOOD), memoryview(bytearray(8)), base=memoryview(bytes(size_bytes)))
