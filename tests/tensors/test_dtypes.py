"""Dtypes: names, sizes and views."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import FormatError
from arc_halo.tensors.dtypes import (
    DTYPES,
    get_dtype,
    name_of,
    numpy_dtype,
    raw_bytes,
    size_bytes,
    view,
)

EXPRESSIBLE = [name for name, dtype in DTYPES.items() if dtype.numpy_name]
PACKED = [name for name, dtype in DTYPES.items() if not dtype.numpy_name]


def one_tensor_file(dtype: str, shape: list[int], size: int) -> bytes:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"t": entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def reference_dtypes() -> set[str]:
    """The list that the reference implementation gives when it meets a dtype it does not know."""
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.deserialize(one_tensor_file("NOPE", [1], 1))
    listed = str(caught.value).partition("expected one of")[2].rpartition(" at line")[0]
    return {name.strip(" `") for name in listed.split(",")}


def test_every_dtype_of_the_reference_implementation_is_known() -> None:
    assert reference_dtypes() <= set(DTYPES)


@pytest.mark.parametrize("name", DTYPES)
def test_sizes_are_those_of_the_reference_implementation(name: str) -> None:
    size = size_bytes(name, [4, 2])
    assert safetensors.deserialize(one_tensor_file(name, [4, 2], size))
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(one_tensor_file(name, [4, 2], size + 1))


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_the_numpy_dtype_has_the_item_size_and_names_the_dtype_again(name: str) -> None:
    dtype = numpy_dtype(name)
    assert dtype.itemsize == DTYPES[name].item_bytes
    assert name_of(dtype) == name


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_dtype_has_a_size_but_no_numpy_dtype(name: str) -> None:
    assert DTYPES[name].item_bytes == 0
    assert size_bytes(name, [8]) == DTYPES[name].item_bits
    with pytest.raises(FormatError, match=name) as caught:
        numpy_dtype(name)
    assert caught.value.error_code == "AH026"


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_tensor_ending_inside_a_byte_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="inside a byte"):
        size_bytes(name, [3])


@pytest.mark.parametrize("name", ["F8_E4M3FN", "f32", "", "C128"])
def test_an_unknown_dtype_is_named_and_the_known_ones_are_listed(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        get_dtype(name)
    assert repr(name) in caught.value.message
    assert "BF16" in str(caught.value.hint)


@pytest.mark.parametrize("dtype", ["O", "U4", "V8", "M8[s]", "c16", "float16,float16"])
def test_a_numpy_dtype_without_counterpart_is_refused(dtype: str) -> None:
    with pytest.raises(FormatError, match="no counterpart"):
        name_of(np.dtype(dtype))


def test_a_scalar_has_one_element_and_a_zero_dimension_none() -> None:
    assert size_bytes("F32", []) == 4
    assert size_bytes("F32", [3, 0, 5]) == 0


@pytest.mark.parametrize(
    "shape", [[2**62], [2**40, 2**40], [2**40, 2**40, 0], [0, 2**64], [2] * 10**6, [-1], [-1, 0]]
)
def test_an_absurd_shape_is_refused_even_where_a_zero_would_excuse_it(shape: list[int]) -> None:
    with pytest.raises(FormatError, match="negative or too large"):
        size_bytes("F32", shape)


@given(
    name=st.sampled_from(EXPRESSIBLE), shape=st.lists(st.integers(0, 5), max_size=4), data=st.data()
)
def test_bytes_viewed_as_an_array_are_the_same_bytes(
    name: str, shape: list[int], data: st.DataObject
) -> None:
    size = size_bytes(name, shape)
    raw = data.draw(st.binary(min_size=size, max_size=size))
    array = view(raw, name, shape)
    assert array.shape == tuple(shape)
    assert array.dtype == numpy_dtype(name)
    assert bytes(raw_bytes(array)) == raw


def test_a_view_of_writable_bytes_writes_through() -> None:
    raw = bytearray(8)
    view(raw, "U16", [2, 2])[1, 0] = 0x0102
    assert raw == bytes([0, 0, 0, 0, 2, 1, 0, 0])


def test_stored_bytes_are_row_major_and_little_endian() -> None:
    big_endian = np.array([[1, 2], [3, 4]], dtype=">u2").T
    assert name_of(big_endian.dtype) == "U16"
    assert bytes(raw_bytes(big_endian)) == bytes([1, 0, 3, 0, 2, 0, 4, 0])


def test_raw_bytes_of_a_stored_array_are_not_copied() -> None:
    array = np.zeros(3, np.float32)
    raw_bytes(array)[:] = bytes([0, 0, 128, 63] * 3)
    assert array.tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_view_of_the_wrong_length_is_refused(size: int) -> None:
    with pytest.raises(FormatError, match=f"has 8 bytes, not {size}"):
        view(bytes(size), "F32", [2])


def test_a_rank_beyond_numpys_is_refused() -> None:
    with pytest.raises(FormatError, match="65 dimensions"):
        view(bytes(1), "U8", [1] * 65)
