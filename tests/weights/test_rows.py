"""Parts of tensors: equal to what numpy gives of the whole, from no more chunks than needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arc_halo
from arc_halo.api import Halo
from arc_halo.errors import CorruptChunkError, InvalidInputError, MissingChunkError

ROWS, COLUMNS = 700, 301
SHARED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
RNG = np.random.default_rng(5)
MATRIX = RNG.normal(size=(ROWS, COLUMNS)).astype(np.float32)
CUBE = RNG.integers(-9, 9, (37, 5, 600), dtype=np.int64)


@pytest.fixture
def halo(database: str, tmp_path: Path) -> Any:
    with arc_halo.connect(database, project=tmp_path, migrate=False) as opened:
        opened.models.create_model(model_name="m", model_type="other", architecture_config={})
        opened.tensors.write(
            "m",
            {
                "matrix": MATRIX,
                "cube": CUBE,
                "one": np.float64(2.5),
                "empty": np.zeros((0, 4), np.float32),
                "thin": np.zeros((9, 0), np.float16),
            },
        )
        yield opened


slices = st.builds(
    slice,
    st.none() | st.integers(-ROWS - 9, ROWS + 9),
    st.none() | st.integers(-ROWS - 9, ROWS + 9),
    st.none() | st.integers(-400, 400).filter(bool),
)


def test_any_slice_of_the_first_axis_is_what_numpy_gives(halo: Halo) -> None:
    @given(rows=slices)
    @SHARED
    def check(rows: slice) -> None:
        for name, array in (("matrix", MATRIX), ("cube", CUBE)):
            found = halo.tensors.read("m", name, rows=rows)
            np.testing.assert_array_equal(found, array[rows], strict=True)
            assert found.flags.c_contiguous
            assert found.flags.writeable

    check()


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        np.int64(3),
        (4, 5),
        (slice(2, 600, 7), 1),
        (slice(None), slice(None, None, -1)),
        (Ellipsis, 2),
        None,
        [1, 5, 3],
        np.array([9, 9, 0]),
        (np.array([1, 2]), np.array([3, 4])),
    ],
    ids=repr,
)
def test_a_handle_is_indexed_as_an_array(halo: Halo, key: Any) -> None:
    handle = halo.tensors.open("m", "matrix")
    np.testing.assert_array_equal(handle[key], MATRIX[key], strict=True)


def test_a_handle_knows_its_facts_and_reads_itself(halo: Halo) -> None:
    handles = halo.tensors.handles("m")
    assert list(handles) == halo.tensors.names("m")
    cube = handles["cube"]
    assert (cube.dtype, cube.shape, cube.size_bytes, len(cube)) == (
        "I64",
        CUBE.shape,
        CUBE.nbytes,
        37,
    )
    np.testing.assert_array_equal(np.asarray(cube), CUBE, strict=True)
    np.testing.assert_array_equal(np.asarray(cube, dtype=np.float32), CUBE.astype(np.float32))
    assert handles["one"].read() == 2.5
    assert handles["one"][()] == 2.5
    with pytest.raises(TypeError):
        len(handles["one"])
    with pytest.raises(IndexError):
        cube[37]


def test_tensors_without_rows_or_bytes(halo: Halo) -> None:
    assert halo.tensors.read("m", "empty", rows=slice(0, 5)).shape == (0, 4)
    assert halo.tensors.read("m", "thin", rows=slice(2, 5)).shape == (3, 0)
    with pytest.raises(InvalidInputError, match="no rows"):
        halo.tensors.read("m", "one", rows=slice(0, 1))


def test_a_model_is_loaded_whole_in_one_stream(halo: Halo) -> None:
    loaded = halo.tensors.load("m")
    assert list(loaded) == halo.tensors.names("m")
    for name in loaded:
        np.testing.assert_array_equal(loaded[name], halo.tensors.read("m", name), strict=True)
    halo.models.create_model(model_name="bare", model_type="other", architecture_config={})
    assert halo.tensors.load("bare") == {}


def test_damage_elsewhere_in_the_tensor_is_not_read(halo: Halo, tamper: Callable[..., int]) -> None:
    # Row 650 lies in the last of four chunks.
    damage = "UPDATE chunk_bodies SET body = set_byte(body, 9, 255 - get_byte(body, 9))"
    of = "(SELECT chunk_digest FROM tensor_data JOIN tensor_metadata ON id = tensor_id"
    where = f"WHERE digest = {of} WHERE dtype = 'F32' AND chunk_index = %s AND size_bytes > 0)"
    assert tamper(f"{damage} {where}", 0) == 1
    np.testing.assert_array_equal(
        halo.tensors.read("m", "matrix", rows=slice(650, 651)), MATRIX[650:651]
    )
    with pytest.raises(CorruptChunkError, match="'matrix': chunk 0"):
        halo.tensors.read("m", "matrix", rows=slice(1, 2))
    with pytest.raises(CorruptChunkError, match="'matrix': chunk 0"):
        halo.tensors.load("m")


def test_a_chunk_list_that_is_not_the_tensor_s_is_noticed_by_any_part(
    halo: Halo, tamper: Callable[..., int]
) -> None:
    chunk = "SELECT chunk_digest FROM tensor_data JOIN tensor_metadata ON id = tensor_id"
    other = f"({chunk} WHERE dtype = 'I64' AND chunk_index = 0)"
    mine = "tensor_id = (SELECT id FROM tensor_metadata WHERE dtype = 'F32' AND size_bytes > 0)"
    assert (
        tamper(f"UPDATE tensor_data SET chunk_digest = {other} WHERE {mine} AND chunk_index = 0")
        == 1
    )
    with pytest.raises(CorruptChunkError, match="do not add up"):
        halo.tensors.read("m", "matrix", rows=slice(650, 651))
    assert tamper(f"DELETE FROM tensor_data WHERE {mine} AND chunk_index = 1") == 1
    with pytest.raises((MissingChunkError, CorruptChunkError), match="'matrix'"):
        halo.tensors.read("m", "matrix", rows=slice(650, 651))
