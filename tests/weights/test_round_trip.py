"""What goes in comes out, bit by bit, whatever its dtype, shape, name, chunking and codec."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_halo.errors import FormatError
from arc_halo.formats.safetensors import arc_halo_weight_formats
from arc_halo.store import builds
from arc_halo.tensors.dtypes import DTYPES
from arc_halo.transfer.exporting import export_weights
from arc_halo.transfer.importing import import_weights
from arc_halo.transfer.sources import DigestCache, source_facts
from arc_halo.weights.reading import read_array, read_pieces
from arc_halo.weights.store import WeightStore

(SAFETENSORS,) = arc_halo_weight_formats()
Contents = dict[str, tuple[str, tuple[int, ...], bytes]]

ODD_NAMES = [
    "",
    " ",
    'quote"',
    "back\\slash",
    "new\nline",
    "é",
    "模型",
    "🙂",
    "a/../b",
    "%s",
    "'; --",
]
SHAPES = [(), (0,), (1,), (3, 0, 2), (8,), (2, 1, 4), (40_000,), (300, 500)]


def everything() -> Contents:
    """Every dtype in every shape it can have, and odd names."""
    source = random.Random(7)
    contents: Contents = {}
    for name, dtype in DTYPES.items():
        for shape in SHAPES:
            bits = math.prod(shape) * dtype.item_bits
            if bits % 8 == 0:
                raw = source.randbytes(bits // 8)
                raw = bytes(b & 1 for b in raw) if name == "BOOL" else raw
                contents[f"{name}{list(shape)}"] = (name, shape, raw)
    contents |= {name: ("U8", (len(name.encode()),), name.encode()) for name in ODD_NAMES}
    return contents


def import_file(store: WeightStore, path: Path, **options: Any) -> Any:
    facts = source_facts(path, SAFETENSORS, DigestCache(None))
    built = import_weights(store, path, SAFETENSORS, facts.root, label=path.name, **options)
    assert built.root == facts.root
    return built


def rows_of(store: WeightStore, root: bytes) -> list[builds.NamedTensor]:
    with store.pool.connection() as conn:
        return builds.set_tensors(conn, builds.sets_by_root(conn, [root])[root].id)


def parse(path: Path) -> tuple[Contents, dict[str, str]]:
    """A safetensors file read by hand, in the order of its header."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = data[8 + length :]
    return {
        name: (entry["dtype"], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }, metadata


@pytest.mark.parametrize(
    ("chunk_bytes", "codec", "threads"),
    [(262144, None, 2), (16384, "planes", 1), (1048576, "zstd", 4), (100_003, "raw", 2)],
)
def test_everything_comes_out_as_it_went_in(
    make_store: Callable[..., WeightStore],
    write_file: Callable[..., Path],
    tmp_path: Path,
    chunk_bytes: int,
    codec: str | None,
    threads: int,
) -> None:
    contents = everything()
    metadata = {"format": "pt", "odd": 'é"\n🙂', "": ""}
    store = make_store(chunk_bytes=chunk_bytes, threads=threads)
    built = import_file(store, write_file(contents, metadata), codec=codec)
    assert (built.tensor_count, built.tensors_built) == (len(contents), len(contents))
    assert built.size_bytes == sum(len(raw) for _, _, raw in contents.values())

    out = tmp_path / "out.safetensors"
    with store.pool.connection() as conn:
        weight_set = builds.sets_by_root(conn, [built.root])[built.root]
    export_weights(store, weight_set.id, out, SAFETENSORS, metadata=metadata)
    assert parse(out) == (contents, metadata)


def test_tensors_keep_the_order_of_their_file(
    store: WeightStore, write_file: Callable[..., Path]
) -> None:
    contents = {name: ("U8", (1,), bytes([i])) for i, name in enumerate("zaybx")}
    built = import_file(store, write_file(contents))
    assert [row.name for row in rows_of(store, built.root)] == list("zaybx")


def test_arrays_and_pieces_are_read_alike(
    make_store: Callable[..., WeightStore], write_file: Callable[..., Path]
) -> None:
    contents = everything()
    store = make_store(chunk_bytes=65536)
    built = import_file(store, write_file(contents))
    for row in rows_of(store, built.root):
        dtype, shape, raw = contents[row.name]
        assert b"".join(bytes(piece) for piece in read_pieces(store, row, row.name)) == raw
        if DTYPES[dtype].numpy_name is not None:
            array = read_array(store, row, row.name)
            assert (array.shape, array.dtype.name) == (shape, DTYPES[dtype].numpy_name)
            assert array.tobytes() == raw


@pytest.mark.parametrize("chunk_bytes", [16384, 262144])
def test_equal_weights_are_stored_once_whatever_the_chunks_and_codecs(
    make_store: Callable[..., WeightStore],
    write_file: Callable[..., Path],
    sql: Callable[..., Any],
    chunk_bytes: int,
) -> None:
    raw = np.random.default_rng(1).random(200_000, np.float32).tobytes()
    first = {"a": ("F32", (200_000,), raw)}
    built = import_file(make_store(chunk_bytes=chunk_bytes), write_file(first))
    assert built.new_bytes == len(raw)
    count = sql("SELECT count(*), sum(stored_bytes) FROM chunk_bodies")

    second = {"x": ("F32", (200_000,), raw), "y": ("F32", (400, 500), raw)}
    again = import_file(
        make_store(chunk_bytes=chunk_bytes),
        write_file(second, file="n.safetensors"),
        codec="raw",
    )
    assert (again.new_bytes, again.stored_bytes) == (0, 0)
    assert sql("SELECT count(*), sum(stored_bytes) FROM chunk_bodies") == count
    assert sql("SELECT count(*) FROM tensor_metadata") == [(2,)]
    assert sql("SELECT count(*) FROM weight_sets") == [(2,)]


def test_chunks_that_repeat_inside_a_tensor_are_stored_once(
    store: WeightStore, write_file: Callable[..., Path], sql: Callable[..., Any]
) -> None:
    contents = {"zeros": ("U8", (4 * 262144 + 5,), bytes(4 * 262144 + 5))}
    built = import_file(store, write_file(contents))
    assert sql("SELECT count(*) FROM tensor_data") == [(5,)]
    assert sql("SELECT count(*) FROM chunk_bodies") == [(2,)]
    assert built.new_bytes == 262144 + 5


def test_a_file_without_tensors_is_a_weight_set_too(
    store: WeightStore, write_file: Callable[..., Path]
) -> None:
    built = import_file(store, write_file({}))
    assert (built.tensor_count, built.size_bytes) == (0, 0)
    assert rows_of(store, built.root) == []


def test_a_name_too_long_to_be_stored_is_refused(
    store: WeightStore, write_file: Callable[..., Path]
) -> None:
    long, longer = (random.Random(1).randbytes(size).hex() for size in (512, 4096))
    built = import_file(store, write_file({long: ("U8", (1,), b"x")}))
    assert [row.name for row in rows_of(store, built.root)] == [long]
    with pytest.raises(FormatError, match=r"tensor .* cannot be stored"):
        import_file(store, write_file({longer: ("U8", (1,), b"x")}))
