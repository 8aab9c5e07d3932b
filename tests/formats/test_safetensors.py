"""Safetensors files, against the reference implementation in both directions."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import ArcHaloError, FormatError
from arc_halo.formats.safetensors import (
    arc_halo_weight_formats,
    open_safetensors,
    write_safetensors,
)
from arc_halo.tensors.dtypes import DTYPES, size_bytes
from arc_halo.types import TensorInfo

DEMO = Path(__file__).parents[2] / "examples" / "weights" / "base" / "model.safetensors"
ODD_NAMES = [
    "",
    " ",
    "a b",
    'quote"',
    "back\\slash",
    "new\nline",
    "tab\t",
    "é",
    "模型",
    "🙂",
    "/",
    "a.0",
]

Contents = list[tuple[str, str, tuple[int, ...], bytes]]
"""(name, dtype, shape, raw bytes) of each tensor in the order of storage."""


def read_all(path: Path) -> tuple[Contents, dict[str, str]]:
    with open_safetensors(path) as reader:
        contents: Contents = []
        for info in reader.tensors:
            out = bytearray(info.size_bytes)
            reader.read_into(info.name, 0, memoryview(out))
            contents.append((info.name, info.dtype, info.shape, bytes(out)))
        return contents, dict(reader.metadata)


def write_all(path: Path, contents: Contents, metadata: Mapping[str, str] | None = None) -> None:
    infos = [
        TensorInfo(name=name, dtype=dtype, shape=shape, size_bytes=len(raw))
        for name, dtype, shape, raw in contents
    ]
    raws = {name: raw for name, _, _, raw in contents}

    def read(tensor: TensorInfo) -> Iterator[memoryview]:
        raw = memoryview(raws[tensor.name])
        return (raw[start : start + 100] for start in range(0, len(raw), 100))

    write_safetensors(path, infos, metadata or {}, read)


def by_reference(path: Path) -> set[tuple[str, str, tuple[int, ...], bytes]]:
    """What the reference implementation reads."""
    read = safetensors.deserialize(path.read_bytes())
    return {(n, t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in read}


def every_dtype() -> Contents:
    numbers = np.random.Generator(np.random.PCG64(1))
    shapes = [(3, 8), (8,), (0,), (2, 0, 4), (1, 1, 8)]
    return [
        (f"{dtype}.{index}", dtype, shape, numbers.bytes(size_bytes(dtype, shape)))
        for dtype in DTYPES
        for index, shape in enumerate(shapes + [()] * (DTYPES[dtype].item_bits % 8 == 0))
    ]


def header_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_it_is_offered_through_the_hook() -> None:
    (weight_format,) = arc_halo_weight_formats()
    assert (weight_format.name, weight_format.version) == ("safetensors", 1)
    assert weight_format.suffixes == (".safetensors", ".safetensors.index.json")
    assert weight_format.open is open_safetensors
    assert weight_format.write is write_safetensors


def test_every_dtype_and_shape_comes_back_in_the_order_written(path: Path) -> None:
    contents = every_dtype()
    write_all(path, contents, {"format": "pt", "é\n": '"'})
    assert read_all(path) == (contents, {"format": "pt", "é\n": '"'})


def test_the_reference_implementation_reads_what_we_write(path: Path) -> None:
    contents = every_dtype()
    write_all(path, contents, {"format": "np"})
    assert by_reference(path) == set(contents)
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "np"}


def test_we_read_what_the_reference_implementation_writes(path: Path) -> None:
    numbers = np.random.Generator(np.random.PCG64(2))
    dtypes = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]
    arrays = {f"{d}.{s}": numbers.integers(0, 2, s).astype(d) for d in dtypes for s in [(2, 3), ()]}
    arrays["empty"] = np.zeros((0, 4), np.float32)
    safetensors.numpy.save_file(arrays, path, metadata={"b": "2", "a": "é"})
    contents, metadata = read_all(path)
    assert metadata == {"a": "é", "b": "2"}
    assert {name: raw for name, _, _, raw in contents} == {
        name: array.tobytes() for name, array in arrays.items()
    }
    assert {name: shape for name, _, shape, _ in contents} == {
        name: array.shape for name, array in arrays.items()
    }


def test_a_file_of_the_reference_implementation_is_written_again_byte_by_byte(
    path: Path, tmp_path: Path
) -> None:
    arrays = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "é\n": np.ones((), np.float64),
        "b": np.zeros(3, np.uint8),
        "e": np.zeros((0,), np.float32),
    }
    # One key only: the reference writes several in the order of a hash table, anew each time.
    safetensors.numpy.save_file(arrays, path, metadata={"z": "1"})
    write_all(tmp_path / "again", *read_all(path))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_demos_model_is_written_again_byte_by_byte(path: Path) -> None:
    write_all(path, *read_all(DEMO))
    assert path.read_bytes() == DEMO.read_bytes()


def test_odd_names_come_back(path: Path) -> None:
    contents: Contents = [(name, "U8", (1,), bytes([i])) for i, name in enumerate(ODD_NAMES)]
    write_all(path, contents, dict.fromkeys(ODD_NAMES, "🙂\n"))
    assert read_all(path) == (contents, dict.fromkeys(ODD_NAMES, "🙂\n"))
    assert by_reference(path) == set(contents)


def test_a_file_without_tensors_comes_back(path: Path) -> None:
    write_all(path, [])
    assert path.read_bytes() == struct.pack("<Q", 8) + b"{}      "
    assert read_all(path) == ([], {})


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
tensors = st.tuples(st.sampled_from(["U8", "BF16", "F32"]), st.lists(st.integers(0, 4), max_size=3))


@given(tensors=st.dictionaries(names, tensors, max_size=5), metadata=st.dictionaries(names, names))
def test_any_file_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[str, list[int]]],
    metadata: dict[str, str],
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    contents: Contents = [
        (name, dtype, tuple(shape), os.urandom(size_bytes(dtype, shape)))
        for name, (dtype, shape) in tensors.items()
        if name != "__metadata__"
    ]
    write_all(path, contents, metadata)
    assert read_all(path) == (contents, metadata)
    assert by_reference(path) == set(contents)
    assert len(header_of(path)) % 8 == 0


def test_tensors_come_in_the_order_of_their_bytes_not_of_the_header(path: Path) -> None:
    entries = {
        "late": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
        "empty": {"dtype": "U8", "shape": [0], "data_offsets": [1, 1]},
        "early": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    }
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"abc")
    contents, _ = read_all(path)
    assert [(name, raw) for name, _, _, raw in contents] == [
        ("early", b"a"),
        ("empty", b""),
        ("late", b"bc"),
    ]


def test_any_part_of_a_tensor_can_be_read(path: Path) -> None:
    raw = bytes(range(100))
    write_all(path, [("first", "U8", (7,), bytes(7)), ("t", "U8", (100,), raw)])
    with open_safetensors(path) as reader:
        for offset, length in [(0, 100), (0, 0), (100, 0), (13, 50), (99, 1)]:
            out = bytearray(length)
            reader.read_into("t", offset, memoryview(out))
            assert out == raw[offset : offset + length]
        words = np.zeros((5, 5), "<u4")
        reader.read_into("t", 0, words.data)
        assert words.tobytes() == raw


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 8), (7, 1), (4, 4)])
def test_what_is_not_of_the_tensor_cannot_be_read(path: Path, offset: int, length: int) -> None:
    write_all(path, [("t", "U8", (7,), bytes(7)), ("next", "U8", (9,), bytes(9))])
    with open_safetensors(path) as reader, pytest.raises(ValueError, match="has no"):
        reader.read_into("t", offset, memoryview(bytearray(length)))


def test_several_threads_may_read_at_once(path: Path) -> None:
    contents: Contents = [(str(i), "U8", (5000,), os.urandom(5000)) for i in range(50)]
    write_all(path, contents)
    with open_safetensors(path) as reader, ThreadPoolExecutor(8) as pool:

        def read(name: str) -> bytes:
            out = bytearray(5000)
            reader.read_into(name, 0, memoryview(out))
            return bytes(out)

        assert list(pool.map(read, [name for name, *_ in contents])) == [c[3] for c in contents]


def test_a_file_that_becomes_shorter_is_noticed(path: Path) -> None:
    write_all(path, [("t", "U8", (5000,), bytes(5000))])
    with open_safetensors(path) as reader:
        os.truncate(path, 1000)
        with pytest.raises(FormatError, match="became shorter") as caught:
            reader.read_into("t", 0, memoryview(bytearray(5000)))
    assert caught.value.error_code == "AH063"


def test_reading_and_writing_hold_no_tensor_in_memory(path: Path, tmp_path: Path) -> None:
    size = 2**24
    infos = [TensorInfo(name=str(i), dtype="U8", shape=(size,), size_bytes=size) for i in range(2)]
    piece = memoryview(bytearray(2**16))
    tracemalloc.start()
    write_safetensors(path, infos, {}, lambda _: (piece for _ in range(size // len(piece))))
    with open_safetensors(path) as reader:
        for info in reader.tensors:
            for offset in range(0, size, len(piece)):
                reader.read_into(info.name, offset, piece)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 2 * size
    assert peak_bytes < 2**20


def test_closing_the_reader_closes_its_files(path: Path) -> None:
    write_all(path, [("t", "U8", (1,), b"1")])
    before = len(files_in(Path("/dev/fd")))
    with open_safetensors(path):
        assert len(files_in(Path("/dev/fd"))) == before + 1
    path.write_bytes(b"broken")
    with pytest.raises(FormatError), open_safetensors(path):
        pass
    assert len(files_in(Path("/dev/fd"))) == before


# --- writing ---------------------------------------------------------------------------------


def info(
    name: str = "t", dtype: str = "U8", shape: tuple[int, ...] = (4,), size: int = 4
) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape, size_bytes=size)


def four_bytes(_: TensorInfo) -> Iterator[memoryview]:
    yield memoryview(b"1234")


@pytest.mark.parametrize(
    ("infos", "metadata", "message"),
    [
        ([info(), info()], {}, "'t'.*given twice"),
        ([info("__metadata__")], {}, "reserved"),
        ([info("__metadata__")], {"a": "b"}, "reserved"),
        ([info(dtype="F7")], {}, "'t'.*'F7'"),
        ([info(size=5)], {}, "'t'.*not that of its dtype and shape"),
        ([info(shape=(-4,))], {}, "'t'.*negative"),
        ([info("a\0b")], {}, "NUL"),
        ([info("\ud800")], {}, "half a character"),
        ([info()], {"a": "\0"}, "NUL"),
        ([info()], {"a": 1}, "'a' is not a string"),
        ([info(shape=(3,), size=3)], {}, "'t'.*4 bytes came to be written, not 3"),
        ([info(shape=(5,), size=5)], {}, "'t'.*4 bytes came to be written, not 5"),
    ],
)
def test_what_is_no_safetensors_file_is_not_written(
    path: Path, infos: Sequence[TensorInfo], metadata: dict[str, str], message: str
) -> None:
    path.write_bytes(b"as before")
    with pytest.raises(FormatError, match=message) as caught:
        write_safetensors(path, infos, metadata, four_bytes)
    assert str(path) in caught.value.message
    assert path.read_bytes() == b"as before"
    assert files_in(path.parent) == [path.name]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("no more")])
def test_a_failure_on_the_way_leaves_what_was_there(path: Path, failure: BaseException) -> None:
    path.write_bytes(b"as before")

    def read(_: TensorInfo) -> Iterator[memoryview]:
        yield memoryview(b"12")
        raise failure

    with pytest.raises(type(failure)):
        write_safetensors(path, [info()], {}, read)
    assert path.read_bytes() == b"as before"
    assert files_in(path.parent) == [path.name]


def test_a_full_disk_is_a_named_error(path: Path) -> None:
    def read(_: TensorInfo) -> Iterator[memoryview]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ArcHaloError, match="cannot be written: No space left") as caught:
        write_safetensors(path, [info()], {}, read)
    assert caught.value.hint
    assert files_in(path.parent) == []


def test_a_directory_that_is_not_there_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(ArcHaloError, match="cannot be written: No such file"):
        write_all(tmp_path / "none" / "model.safetensors", [])


def test_nothing_is_seen_at_the_path_before_the_file_is_complete(path: Path) -> None:
    def read(_: TensorInfo) -> Iterator[memoryview]:
        assert not path.exists()
        yield memoryview(b"1234")

    write_safetensors(path, [info()], {}, read)
    assert read_all(path)[0] == [("t", "U8", (4,), b"1234")]


def test_a_file_has_the_rights_that_new_files_have(path: Path) -> None:
    (path.parent / "plain").touch()
    write_all(path, [])
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((path.parent / "plain").stat().st_mode)


# --- sharded models and directories ----------------------------------------------------------

Arrange = Callable[[dict[str, str]], Path]


@pytest.fixture
def arrange(tmp_path: Path) -> Arrange:
    """Two shards with tensors a, b, c, and an index with the given weight_map."""
    write_all(
        tmp_path / "m-1.safetensors",
        [("c", "U8", (1,), b"c"), ("a", "U8", (2,), b"aa")],
        {"x": "1", "y": "1"},
    )
    write_all(tmp_path / "m-2.safetensors", [("b", "U8", (3,), b"bbb")], {"x": "2", "z": "2"})

    def make(weight_map: dict[str, str]) -> Path:
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 6}, "weight_map": weight_map}))
        return index

    return make


GOOD = {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}


@pytest.mark.parametrize("by", ["index", "directory"])
def test_shards_are_one_model(arrange: Arrange, by: str) -> None:
    index = arrange(GOOD)
    path = index if by == "index" else index.parent
    contents, metadata = read_all(path)
    assert contents == [
        ("c", "U8", (1,), b"c"),
        ("a", "U8", (2,), b"aa"),
        ("b", "U8", (3,), b"bbb"),
    ]
    assert metadata == {"x": "1", "y": "1", "z": "2"}
    with open_safetensors(path) as reader:
        names = [file.name for file in reader.files]
    assert names == [index.name, "m-1.safetensors", "m-2.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": "m-1.safetensors"}, r"index\.json: tensor 'd': m-1\.safetensors does not hold it"),
        ({"a": "m-2.safetensors"}, r"m-1\.safetensors: tensor 'a'.*places it in m-2"),
        ({"b": "m-1.safetensors"}, r"index\.json: tensor 'b': m-1\.safetensors does not hold it"),
        ({"b": "m-3.safetensors"}, r"m-3\.safetensors: cannot be read.*index\.json names it"),
        ({"b": "../m-2.safetensors"}, "tensor 'b'.*beside the index"),
        ({"b": "/etc/passwd"}, "tensor 'b'.*beside the index"),
        ({"b": "sub/m-2.safetensors"}, "tensor 'b'.*beside the index"),
        ({"b": ".."}, "tensor 'b'.*beside the index"),
        ({"b": ""}, "tensor 'b'.*beside the index"),
        ({"b": "m-2.safetensors\0"}, "tensor 'b'.*beside the index"),
        ({"b": 3}, "tensor 'b'.*beside the index"),
        ({"b": ["m-2.safetensors"]}, "tensor 'b'.*beside the index"),
        ({"b": "\ud800"}, "cannot be read"),
        ({"\0": "m-1.safetensors"}, "NUL"),
    ],
)
def test_an_index_that_its_shards_contradict_is_refused(
    arrange: Arrange, change: dict[str, str], message: str
) -> None:
    index = arrange(GOOD | change)
    with pytest.raises(FormatError, match=message) as caught, open_safetensors(index):
        pass
    assert caught.value.error_code == "AH026"
    assert caught.value.hint


def test_a_tensor_of_a_shard_that_the_index_forgets_is_refused(arrange: Arrange) -> None:
    index = arrange({"a": "m-1.safetensors", "b": "m-2.safetensors"})
    with (
        pytest.raises(FormatError, match=r"tensor 'c'.*places it in no shard"),
        open_safetensors(index),
    ):
        pass


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}, "weight_map": {}}', "\xff", "{"],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=r"index\.json: "), open_safetensors(index):
        pass


def touch(directory: Path, *files: str) -> None:
    for file in files:
        write_all(directory / file, [(file, "U8", (1,), b"1")])


def test_the_only_file_of_a_directory_is_its_model(tmp_path: Path) -> None:
    touch(tmp_path, "weights.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert [name for name, *_ in read_all(tmp_path)[0]] == ["weights.safetensors"]


def test_model_safetensors_goes_before_other_files(tmp_path: Path) -> None:
    touch(tmp_path, "adapter.safetensors", "model.safetensors")
    assert [name for name, *_ in read_all(tmp_path)[0]] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds 0 models: none"),
        (["a.safetensors", "b.safetensors"], "holds 2 models: a.safetensors, b.safetensors"),
        (["model.safetensors", "x.safetensors.index.json"], "holds 2 models"),
        (["x.safetensors.index.json", "y.safetensors.index.json"], "holds 2 models"),
    ],
)
def test_a_directory_without_exactly_one_model_is_refused(
    tmp_path: Path, files: list[str], message: str
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(FormatError, match=message) as caught, open_safetensors(tmp_path):
        pass
    assert "name the .safetensors file" in str(caught.value.hint)


def test_a_path_that_is_not_there_has_a_code_of_its_own(path: Path) -> None:
    with pytest.raises(FormatError, match="No such file") as caught, open_safetensors(path):
        pass
    assert caught.value.error_code == "AH025"


def test_a_named_pipe_is_refused_and_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(FormatError, match="not a regular file"), open_safetensors(path):
        pass
