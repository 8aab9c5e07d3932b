"""The element types of the safetensors format, and the numpy types that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from arc_halo.errors import FormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SIZE_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DType:
    """One element type. `numpy_name` is None where elements share bytes: numpy has no such array.

    `is_float` claims real numbers of which an average makes sense; complex numbers are not.
    """

    name: str
    item_bits: int
    numpy_name: str | None
    is_float: bool = False

    @property
    def item_bytes(self) -> int:
        """The bytes of one element; 0 where elements share bytes, see `item_bits`."""
        return self.item_bits // 8


def _table(*rows: DType) -> Mapping[str, DType]:
    return MappingProxyType({row.name: row for row in rows})


DTYPES: Mapping[str, DType] = _table(
    DType(name="BOOL", item_bits=8, numpy_name="bool"),
    DType(name="U8", item_bits=8, numpy_name="uint8"),
    DType(name="I8", item_bits=8, numpy_name="int8"),
    DType(name="U16", item_bits=16, numpy_name="uint16"),
    DType(name="I16", item_bits=16, numpy_name="int16"),
    DType(name="U32", item_bits=32, numpy_name="uint32"),
    DType(name="I32", item_bits=32, numpy_name="int32"),
    DType(name="U64", item_bits=64, numpy_name="uint64"),
    DType(name="I64", item_bits=64, numpy_name="int64"),
    DType(name="F16", item_bits=16, numpy_name="float16", is_float=True),
    DType(name="BF16", item_bits=16, numpy_name="bfloat16", is_float=True),
    DType(name="F32", item_bits=32, numpy_name="float32", is_float=True),
    DType(name="F64", item_bits=64, numpy_name="float64", is_float=True),
    DType(name="C64", item_bits=64, numpy_name="complex64"),
    DType(name="F8_E4M3", item_bits=8, numpy_name="float8_e4m3fn", is_float=True),
    DType(name="F8_E5M2", item_bits=8, numpy_name="float8_e5m2", is_float=True),
    DType(name="F8_E8M0", item_bits=8, numpy_name="float8_e8m0fnu", is_float=True),
    DType(name="F8_E4M3FNUZ", item_bits=8, numpy_name="float8_e4m3fnuz", is_float=True),
    DType(name="F8_E5M2FNUZ", item_bits=8, numpy_name="float8_e5m2fnuz", is_float=True),
    DType(name="F6_E2M3", item_bits=6, numpy_name=None, is_float=True),
    DType(name="F6_E3M2", item_bits=6, numpy_name=None, is_float=True),
    DType(name="F4", item_bits=4, numpy_name=None, is_float=True),
)


def get_dtype(name: str) -> DType:
    """The dtype of that safetensors name, or FormatError."""
    try:
        return DTYPES[name]
    except KeyError:
        raise FormatError(
            f"unknown dtype {name!r}", hint=f"the dtypes known are {', '.join(DTYPES)}"
        ) from None


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The little-endian numpy dtype; FormatError for one numpy cannot hold (`F4`, `F6_*`)."""
    import ml_dtypes  # noqa: F401  numpy learns the names of its types by this import
    import numpy as np

    dtype = get_dtype(name)
    if dtype.numpy_name is None:
        raise FormatError(
            f"dtype {name} packs elements of {dtype.item_bits} bits, numpy has no array of them",
            hint="such a tensor is stored and exported bit by bit, but not computed with",
        )
    return np.dtype(dtype.numpy_name).newbyteorder("<")


def name_of(dtype: np.dtype[Any]) -> str:
    """The safetensors name of a numpy dtype, whatever its byte order, or FormatError."""
    try:
        return _NAMES[dtype.name]
    except KeyError:
        raise FormatError(
            f"numpy dtype {dtype.name!r} has no counterpart among the stored dtypes",
            hint=f"convert the array to one of {', '.join(_NAMES)}",
        ) from None


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a numpy dtype is one of the floats known here, those of ml_dtypes included."""
    name = _NAMES.get(dtype.name)
    return name is not None and DTYPES[name].is_float


def size_bytes(dtype: str, shape: Sequence[int]) -> int:
    """The bytes of a tensor; FormatError when they are no whole number or beyond 2**63 - 1.

    Dimensions of zero do not excuse others that are absurd: the limit holds for the product of
    all non-zero dimensions.
    """
    bits = get_dtype(dtype).item_bits * _element_count(dtype, shape)
    if bits % 8:
        raise FormatError(
            f"{describe(dtype, shape)} ends inside a byte",
            hint=f"elements of {get_dtype(dtype).item_bits} bits come in numbers that fill bytes",
        )
    return bits // 8


def describe(dtype: str, shape: Sequence[int]) -> str:
    """`BF16 of shape [2, 3]`, cut short where a shape is absurdly long."""
    return f"{dtype} of shape {list(shape[:8])}" + ("…" if len(shape) > 8 else "")


def view(
    raw: bytes | bytearray | memoryview | NDArray[Any], dtype: str, shape: Sequence[int]
) -> NDArray[Any]:
    """The array that those raw little-endian bytes are: no copy, writable if `raw` is.

    FormatError when `raw` has not the tensor's size or numpy cannot hold the shape or the dtype.
    """
    import numpy as np

    data = np.frombuffer(raw, dtype=np.uint8)
    expected = size_bytes(dtype, shape)
    if data.size != expected:
        raise FormatError(
            f"{describe(dtype, shape)} has {expected} bytes, not {data.size}",
            hint="give the shape and the dtype that the bytes were stored with",
        )
    try:
        return data.view(numpy_dtype(dtype)).reshape(tuple(shape))
    except ValueError as exc:
        raise FormatError(
            f"numpy cannot hold a {dtype} tensor of {len(shape)} dimensions",
            hint="such a tensor is stored and exported, but not computed with",
        ) from exc


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes to store, row-major and little-endian; a copy only where the array is not."""
    import numpy as np

    stored = np.ascontiguousarray(array, dtype=numpy_dtype(name_of(array.dtype)))
    return stored.reshape(-1).view(np.uint8).data


_NAMES: Mapping[str, str] = {d.numpy_name: d.name for d in DTYPES.values() if d.numpy_name}


def _element_count(dtype: str, shape: Sequence[int]) -> int:
    # Checked at each step: a header may hold a million dimensions, and big integers grow slow.
    count = 1
    for dim in shape:
        count *= max(dim, 1)
        if dim < 0 or count * 8 > MAX_SIZE_BYTES:
            raise FormatError(
                f"{describe(dtype, shape)} is negative or too large",
                hint="dimensions count from 0, and a tensor has fewer than 2**63 bytes",
            )
    return 0 if 0 in shape else count
