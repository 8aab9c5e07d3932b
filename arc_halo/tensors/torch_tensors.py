"""Arrays as torch tensors and back; torch is imported when one is asked for."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from arc_halo.errors import ArcHaloError, InvalidInputError
from arc_halo.tensors import dtypes

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]
    from numpy.typing import NDArray


def as_torch(array: NDArray[Any], dtype: str) -> torch.Tensor:
    """A torch tensor over the array's memory, without a copy.

    Raises `InvalidInputError` for a dtype that torch does not have.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as exc:
        raise ArcHaloError(
            "torch is not installed", hint="pip install 'arc-halo[torch]'", code="AH030"
        ) from exc
    import numpy as np

    name = _TORCH_NAMES.get(dtype)
    target = getattr(torch, name, None) if name else None
    if target is None:
        raise InvalidInputError(f"torch has no dtype for {dtype}", hint="read it with numpy")
    if array.dtype.kind == "c":
        return torch.from_numpy(array)
    # numpy knows some floats only through ml_dtypes, which torch does not know: so by their bits.
    integers = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[array.dtype.itemsize]
    return torch.from_numpy(array.view(integers)).view(target)


def as_array(tensor: torch.Tensor, *, copy: bool = False) -> NDArray[Any]:
    """The tensor as an array of the same dtype, row-major; without `copy` it may share memory.

    Raises `InvalidInputError` for a tensor whose values are not plainly there, such as a sparse or
    distributed one, and for a dtype that is not stored.
    """
    import torch  # pyright: ignore[reportMissingImports]

    dtype = _names().get(tensor.dtype)
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise InvalidInputError(
            f"a {type(tensor).__name__} is no plain tensor", hint="gather it to one first"
        )
    if dtype is None or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise InvalidInputError(
            f"a tensor of {tensor.dtype}, {tensor.layout} on {tensor.device} cannot be stored",
            hint="make it dense, of a common dtype, with data",
        )
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if copy and plain.data_ptr() == tensor.data_ptr():
        plain = plain.clone()
    if tensor.is_complex():
        return _as_numpy(plain)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[plain.element_size()]
    return _as_numpy(plain.view(bits)).view(dtypes.numpy_dtype(dtype))


def _as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.numpy()
    return array


@cache
def _names() -> dict[torch.dtype, str]:
    import torch  # pyright: ignore[reportMissingImports]

    # Older versions of torch lack the newest dtypes.
    names = ((getattr(torch, name, None), dtype) for dtype, name in _TORCH_NAMES.items())
    return {torch_dtype: dtype for torch_dtype, dtype in names if torch_dtype is not None}


_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
