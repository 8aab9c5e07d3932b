"""Arrays as torch tensors, over the same memory; torch is imported when one is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arc_halo.errors import ArcHaloError, InvalidInputError

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
