"""Bytes that are not what they were are an error that names the tensor, never a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from arc_halo.errors import CorruptChunkError, MissingChunkError, UnknownPluginError
from arc_halo.formats.safetensors import arc_halo_weight_formats
from arc_halo.store import builds
from arc_halo.transfer.exporting import export_weights
from arc_halo.transfer.importing import import_weights
from arc_halo.transfer.sources import DigestCache, pieces, source_facts
from arc_halo.weights.reading import read_array, read_pieces
from arc_halo.weights.repairing import repair
from arc_halo.weights.store import WeightStore
from arc_halo.weights.verifying import verify

(SAFETENSORS,) = arc_halo_weight_formats()
SHAPE = (150_000,)
"""Three chunks of float32, the last one shorter."""

OF_LAYER = "tensor_id = (SELECT id FROM tensor_metadata WHERE dtype = 'F32')"
CHUNK = f"digest = (SELECT chunk_digest FROM tensor_data WHERE {OF_LAYER} AND chunk_index = %s)"
FLIP = "set_byte(body, octet_length(body) / 2, get_byte(body, octet_length(body) / 2) # 1)"


every_codec = pytest.mark.parametrize("root", ["planes", "zstd", "raw"], indirect=True)


@pytest.fixture
def root(
    request: pytest.FixtureRequest, store: WeightStore, write_file: Callable[..., Path]
) -> bytes:
    return imported(store, write_file, getattr(request, "param", "planes"))


def imported(store: WeightStore, write_file: Callable[..., Path], codec: str) -> bytes:
    layer = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    path = write_file({"layer": ("F32", SHAPE, layer.tobytes()), "other": ("U8", (2,), b"ok")})
    facts = source_facts(path, SAFETENSORS, DigestCache(None))
    import_weights(store, path, SAFETENSORS, facts.root, label="m", codec=codec)
    return facts.root


def rows_of(store: WeightStore, root: bytes) -> dict[str, builds.NamedTensor]:
    with store.pool.connection() as conn:
        found = builds.set_tensors(conn, builds.sets_by_root(conn, [root])[root].id)
    return {row.name: row for row in found}


def check(
    store: WeightStore, root: bytes, error: type[Exception], tmp_path: Path, said: str
) -> None:
    """Every way of reading notices, the tensor is named, the others are still readable."""
    rows = rows_of(store, root)
    with pytest.raises(error, match=f"tensor 'layer': {said}"):
        read_array(store, rows["layer"], "layer")
    with pytest.raises(error, match=f"tensor 'layer': {said}"):
        list(read_pieces(store, rows["layer"], "layer"))
    assert read_array(store, rows["other"], "other").tobytes() == b"ok"
    out = tmp_path / "out" / "model.safetensors"
    out.parent.mkdir()
    with store.pool.connection() as conn:
        set_id = builds.sets_by_root(conn, [root])[root].id
    with pytest.raises(error, match="tensor 'layer'"):
        export_weights(store, set_id, out, SAFETENSORS, metadata={})
    assert list(out.parent.iterdir()) == []


@every_codec
@pytest.mark.parametrize("index", [0, 2])
def test_a_flipped_bit_is_noticed(
    store: WeightStore, root: bytes, tamper: Callable[..., int], tmp_path: Path, index: int
) -> None:
    assert tamper(f"UPDATE chunk_bodies SET body = {FLIP} WHERE {CHUNK}", index) == 1
    check(store, root, CorruptChunkError, tmp_path, f"chunk {index} ")


@every_codec
def test_a_body_that_ends_early_is_noticed(
    store: WeightStore, root: bytes, tamper: Callable[..., int], tmp_path: Path
) -> None:
    cut = "substring(body FROM 1 FOR octet_length(body) - 1)"
    both = f"body = {cut}, stored_bytes = octet_length({cut})"
    assert tamper(f"UPDATE chunk_bodies SET {both} WHERE {CHUNK}", 1) == 1
    check(store, root, CorruptChunkError, tmp_path, "chunk 1 ")


@every_codec
def test_an_empty_body_is_noticed(
    store: WeightStore, root: bytes, tamper: Callable[..., int], tmp_path: Path
) -> None:
    assert tamper(f"UPDATE chunk_bodies SET body = '', stored_bytes = 0 WHERE {CHUNK}", 1) == 1
    check(store, root, CorruptChunkError, tmp_path, "chunk 1 ")


def test_swapped_bodies_are_noticed(
    store: WeightStore, root: bytes, tamper: Callable[..., int], tmp_path: Path
) -> None:
    swap = f"""
        UPDATE chunk_bodies AS c SET body = o.body, stored_bytes = o.stored_bytes, codec = o.codec,
            raw_bytes = o.raw_bytes
        FROM tensor_data AS d, tensor_data AS e, chunk_bodies AS o
        WHERE d.chunk_digest = c.digest AND e.chunk_digest = o.digest
          AND d.{OF_LAYER} AND e.tensor_id = d.tensor_id
          AND d.chunk_index IN (0, 1) AND e.chunk_index = 1 - d.chunk_index"""
    assert tamper(swap) == 2
    check(store, root, CorruptChunkError, tmp_path, "chunk 0 does not have the digest")


def test_swapped_places_are_noticed(
    store: WeightStore, root: bytes, tamper: Callable[..., int], tmp_path: Path
) -> None:
    swap = f"UPDATE tensor_data SET chunk_index = %s WHERE {OF_LAYER} AND chunk_index = %s"
    for new, old in ((9, 0), (0, 1), (1, 9)):
        assert tamper(swap, new, old) == 1
    check(store, root, CorruptChunkError, tmp_path, "its chunks do not add up")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_body_that_is_gone_is_missing(
    store: WeightStore, root: bytes, tamper: Callable[..., int], tmp_path: Path, index: int
) -> None:
    assert tamper(f"DELETE FROM chunk_bodies WHERE {CHUNK}", index) == 1
    check(store, root, MissingChunkError, tmp_path, f"chunk {index} is missing")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_place_that_is_gone_is_missing(
    store: WeightStore, root: bytes, tamper: Callable[..., int], tmp_path: Path, index: int
) -> None:
    delete = f"DELETE FROM tensor_data WHERE {OF_LAYER} AND chunk_index = %s"
    assert tamper(delete, index) == 1
    check(store, root, MissingChunkError, tmp_path, f"chunk {index} is missing")


def test_a_wrong_raw_length_is_noticed(
    store: WeightStore, root: bytes, tamper: Callable[..., int], tmp_path: Path
) -> None:
    assert tamper(f"UPDATE chunk_bodies SET raw_bytes = 5 WHERE {CHUNK}", 1) == 1
    check(store, root, CorruptChunkError, tmp_path, "chunk 1 cannot be decoded: it holds 5 bytes")


def test_another_digest_of_the_tensor_is_noticed(
    store: WeightStore, root: bytes, tamper: Callable[..., int], tmp_path: Path
) -> None:
    wrong = "UPDATE tensor_metadata SET digest = sha256('x') WHERE dtype = 'F32'"
    assert tamper(wrong) == 1
    check(store, root, CorruptChunkError, tmp_path, "its chunks do not add up")


@every_codec
def test_another_codec_than_the_one_that_wrote_it_is_noticed(
    store: WeightStore, root: bytes, tamper: Callable[..., int], tmp_path: Path
) -> None:
    other = "CASE codec WHEN 'raw' THEN 'zstd' WHEN 'zstd' THEN 'planes' ELSE 'zstd' END"
    assert tamper(f"UPDATE chunk_bodies SET codec = {other} WHERE {CHUNK}", 0) == 1
    check(store, root, CorruptChunkError, tmp_path, "chunk 0 ")


def test_a_codec_of_a_later_version_is_not_guessed(
    store: WeightStore, root: bytes, tamper: Callable[..., int]
) -> None:
    assert tamper(f"UPDATE chunk_bodies SET codec_version = 99 WHERE {CHUNK}", 0) == 1
    with pytest.raises(UnknownPluginError, match=r"version 99 .*version 1 is loaded") as caught:
        read_array(store, rows_of(store, root)["layer"], "layer")
    assert caught.value.hint


def test_a_missing_codec_is_an_error_that_names_it(
    store: WeightStore, write_file: Callable[..., Path]
) -> None:
    root = imported(store, write_file, "zstd")
    poorer = replace(store, codecs={"raw": store.codecs["raw"]})
    with pytest.raises(UnknownPluginError, match="'zstd'") as caught:
        read_array(poorer, rows_of(store, root)["layer"], "layer")
    assert caught.value.error_code == "AH032"


def test_the_hint_of_a_damaged_chunk_is_true(
    store: WeightStore,
    write_file: Callable[..., Path],
    tamper: Callable[..., int],
    tmp_path: Path,
) -> None:
    """It says that the file which the weights came from heals it."""
    root = imported(store, write_file, "raw")
    before = read_array(store, rows_of(store, root)["layer"], "layer")
    tamper(f"UPDATE chunk_bodies SET body = {FLIP} WHERE {CHUNK}", 0)
    with pytest.raises(CorruptChunkError) as caught:
        read_array(store, rows_of(store, root)["layer"], "layer")
    assert "tensors verify --repair-from FILE" in (caught.value.hint or "")
    buffer = memoryview(bytearray(1_000_000))
    with SAFETENSORS.open(tmp_path / "m.safetensors") as reader:
        produce = partial(pieces, reader, buffer=buffer)
        repair(store, verify(store).findings, reader.tensors, produce)
    after = read_array(store, rows_of(store, root)["layer"], "layer")
    np.testing.assert_array_equal(after, before, strict=True)
