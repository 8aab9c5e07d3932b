"""Broken headers: each has one error that names file and tensor, and nothing else ever escapes."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import example, given
from hypothesis import strategies as st

from arc_halo.errors import FormatError
from arc_halo.formats._header import MAX_HEADER_BYTES, build_header, parse_header
from arc_halo.formats.safetensors import open_safetensors
from arc_halo.tensors.dtypes import DTYPES
from arc_halo.types import TensorInfo


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def parse(document: Any, data_bytes: int = 8) -> None:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    parse_header(text, data_bytes, "m.safetensors")


BROKEN_TENSORS = [
    ({"a": entry("F99")}, "unknown dtype 'F99'"),
    ({"a": entry("f32")}, "unknown dtype 'f32'"),
    ({"a": entry(32)}, "dtype is not a short string"),
    ({"a": entry("F" * 10**6)}, "dtype is not a short string"),
    ({"a": entry(None)}, "dtype is not a short string"),
    ({"a": entry(shape=[-2])}, "shape is not a list of whole numbers"),
    ({"a": entry(shape=[2.0])}, "shape is not a list of whole numbers"),
    ({"a": entry(shape=[True, 2])}, "shape is not a list of whole numbers"),
    ({"a": entry(shape=["2"])}, "shape is not a list of whole numbers"),
    ({"a": entry(shape=[[2]])}, "shape is not a list of whole numbers"),
    ({"a": entry(shape=2)}, "shape is not a list of whole numbers"),
    ({"a": entry(shape=[10**400])}, "shape is not a list of whole numbers"),
    ({"a": entry(shape=[2**62, 2**62])}, "too large"),
    ({"a": entry(shape=[2**32, 2**32, 0], offsets=[0, 0])}, "too large"),
    ({"a": entry(offsets=[0])}, "begin and an end"),
    ({"a": entry(offsets=[0, 8, 8])}, "begin and an end"),
    ({"a": entry(offsets=[8, 0])}, "begin and an end"),
    ({"a": entry(offsets=[-8, 0])}, "begin and an end"),
    ({"a": entry(offsets=[False, 8])}, "begin and an end"),
    ({"a": entry(offsets=[0.0, 8.0])}, "begin and an end"),
    ({"a": entry(offsets={"0": 8})}, "begin and an end"),
    ({"a": entry(offsets=[0, 4])}, "it has 4 bytes, F32 of shape [2] 8"),
    ({"a": entry(shape=[])}, "it has 8 bytes, F32 of shape [] 4"),
    ({"a": entry("F4", [3], [0, 2])}, "inside a byte"),
    ({"a": entry(offsets=[1, 9])}, "leaves a hole before it: it begins at 1, not 0"),
    ({"x": entry(), "a": entry(offsets=[4, 12])}, "overlaps the one before"),
    ({"x": entry(), "a": entry(offsets=[0, 8])}, "overlaps the one before"),
    ({"x": entry(), "a": entry(shape=[0], offsets=[4, 4])}, "overlaps the one before"),
    ({"x": entry(), "a": entry(offsets=[12, 20])}, "leaves a hole"),
    ({"a": entry(more=1)}, "exactly data_offsets, dtype, shape"),
    ({"a": {"dtype": "F32", "shape": [2]}}, "exactly data_offsets, dtype, shape"),
    ({"a": [1]}, "exactly data_offsets, dtype, shape"),
    ({"a": None}, "exactly data_offsets, dtype, shape"),
]

BROKEN_HEADERS = [
    (b"", "begin with"),
    (b" {}", "begin with"),
    (b"[]", "begin with"),
    (b"\xef\xbb\xbf{}", "begin with"),
    (b"{", "JSON is broken"),
    (b"{}x", "JSON is broken"),
    (b"{'a': 1}", "JSON is broken"),
    (b'{"\xff": 1}', "JSON is broken"),
    (b'{"a":' * 100_000, "JSON is broken"),
    (b'{"a":' + b"[" * 100_000, "JSON is broken"),
    (b'{"a": ' + b"9" * 5000 + b"}", "JSON is broken"),
    (b'{"a": 1, "b": 2, "a": 1}', "key 'a' stands twice"),
    (b'{"a": {"dtype": "F32", "dtype": "F32"}}', "key 'dtype' stands twice"),
    (b'{"__metadata__": {"k": "1", "k": "1"}}', "key 'k' stands twice"),
    (b'{"__metadata__": {}, "__metadata__": {}}', "key '__metadata__' stands twice"),
    (b'{"__metadata__": []}', "__metadata__ is not an object of strings"),
    (b'{"__metadata__": {"k": 1}}', "the value of 'k' is not a string"),
    (b'{"__metadata__": {"k": {"l": "m"}}}', "the value of 'k' is not a string"),
    (b'{"__metadata__": {"k": "\\u0000"}}', "NUL"),
    (b'{"__metadata__": {"\\ud800": ""}}', "half a character"),
    (b'{"a\\u0000": {}}', "NUL"),
    (b'{"a\\udfff": {}}', "half a character"),
]


@pytest.mark.parametrize(("document", "message"), BROKEN_TENSORS)
def test_a_broken_tensor_is_named(document: Any, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(document)
    assert caught.value.message.startswith("m.safetensors: tensor 'a': ")
    assert message in caught.value.message
    assert caught.value.hint
    assert caught.value.error_code == "AH026"


@pytest.mark.parametrize(
    ("text", "message"), BROKEN_HEADERS, ids=map(str, range(len(BROKEN_HEADERS)))
)
def test_a_broken_header_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(text)
    assert caught.value.message.startswith("m.safetensors: ")
    assert message in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("data_bytes", "message"), [(7, "cut off"), (0, "cut off"), (9, "9 bytes follow")]
)
def test_bytes_missing_or_left_over_are_refused(data_bytes: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse({"a": entry()}, data_bytes)


def test_the_broken_headers_are_one_step_from_a_good_one() -> None:
    parse({"a": entry(), "__metadata__": {"k": "v"}})
    parse({"a": entry(), "__metadata__": None})
    parse(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}} \n ')


def test_a_long_name_does_not_make_a_long_message() -> None:
    with pytest.raises(FormatError) as caught:
        parse({"n" * 10**6: None})
    assert len(caught.value.message) < 400


def test_a_hostile_header_is_refused_quickly() -> None:
    shape = [1] * 10**5
    many = {str(i): entry("U8", [0], [0, 0]) for i in range(20_000)}
    twice = json.dumps(many).encode()[:-1] + b', "19999": 1}'
    started = time.process_time()
    for document in ({"a": entry(shape=[*shape, 3])}, {"a": entry("U64", [3] * 10**5)}, twice):
        with pytest.raises(FormatError):
            parse(document)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\2\0\0\0\0\0\0", id="shorter than its length"),
        pytest.param(struct.pack("<Q", 3) + b"{}", id="header cut off"),
        pytest.param(struct.pack("<Q", 2**63) + b"{}", id="absurd length"),
        pytest.param(struct.pack("<Q", 2**64 - 8) + b"{}", id="length that overflows"),
        pytest.param(struct.pack("<Q", 0), id="no header"),
    ],
)
def test_a_file_that_ends_within_its_header_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"m\.safetensors: ") as caught, open_safetensors(path):
        pass
    assert caught.value.error_code == "AH026"


def test_a_header_beyond_100_mb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(FormatError, match="cannot have 100000001 bytes"), open_safetensors(path):
        pass


def test_a_header_is_written_as_the_reference_implementation_does() -> None:
    infos = [TensorInfo(name="é\n", dtype="F32", shape=(2,), size_bytes=8)]
    header = build_header(infos, {"b": "1", "a": "2"}, "m")
    assert header == (
        '{"__metadata__":{"a":"2","b":"1"},"é\\n":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    ).encode() + b" " * (len(header) - len(header.rstrip()))
    assert len(header) % 8 == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
likely_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(DTYPES)) | json_values,
        "shape": st.lists(st.integers(-1, 2**64), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 2**64), min_size=2, max_size=2) | json_values,
    }
)
documents = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]) | st.text(), likely_entries | json_values
)


@given(document=documents, data_bytes=st.integers(0, 100))
def test_no_header_lets_another_error_escape(document: dict[str, Any], data_bytes: int) -> None:
    with contextlib.suppress(FormatError):
        parse(document, data_bytes)


@given(text=st.binary(max_size=200))
@example(b"{")
def test_no_bytes_let_another_error_escape(text: bytes) -> None:
    for candidate in (text, b"{" + text):
        with contextlib.suppress(FormatError):
            parse_header(candidate, 0, "m")


SMALL = {
    "__metadata__": {"format": "pt"},
    "a.weight": entry("F32", [2, 3], [0, 24]),
    "b": entry("BF16", [4], [24, 32]),
    "e": entry("F32", [0], [32, 32]),
}


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_file_is_read_only_if_the_reference_implementation_reads_it_alike(
    tmp_path: Path, seed: int
) -> None:
    header = json.dumps(SMALL, separators=(",", ":")).encode()
    good = struct.pack("<Q", len(header)) + header + bytes(range(32))
    path, choose, accepted = tmp_path / "m.safetensors", random.Random(seed), 0
    for _ in range(500):
        data = mutate(good, choose)
        path.write_bytes(data)
        with contextlib.suppress(FormatError), open_safetensors(path) as reader:
            accepted += 1
            found = {t.name: (t.dtype, list(t.shape), read(reader, t)) for t in reader.tensors}
            reference = safetensors.deserialize(data)
            assert found == {n: (t["dtype"], t["shape"], bytes(t["data"])) for n, t in reference}
    assert 0 < accepted < 500


def read(reader: Any, tensor: TensorInfo) -> bytes:
    out = bytearray(tensor.size_bytes)
    reader.read_into(tensor.name, 0, memoryview(out))
    return bytes(out)


def mutate(data: bytes, choose: random.Random) -> bytes:
    at = choose.randrange(len(data))
    match choose.randrange(6):
        case 0:
            return data[:at] + bytes([choose.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[at + choose.randrange(1, 9) :]
        case 3:
            return data[:at] + choose.randbytes(choose.randrange(1, 9)) + data[at:]
        case 4:
            return data[:at] + bytes([data[at] ^ 1 << choose.randrange(8)]) + data[at + 1 :]
        case _:
            return data + choose.randbytes(choose.randrange(3))
