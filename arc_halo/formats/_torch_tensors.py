"""Torch's tensors as the store sees them: a safetensors dtype, a shape, and raw bytes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from arc_halo.formats._header import refuse
from arc_halo.types import TensorInfo

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]
    from numpy.typing import NDArray

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "bool": "BOOL",
        "uint8": "U8",
        "int8": "I8",
        "uint16": "U16",
        "int16": "I16",
        "uint32": "U32",
        "int32": "I32",
        "uint64": "U64",
        "int64": "I64",
        "float16": "F16",
        "bfloat16": "BF16",
        "float32": "F32",
        "float64": "F64",
        "complex64": "C64",
        "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2",
        "float8_e8m0fnu": "F8_E8M0",
        "float8_e4m3fnuz": "F8_E4M3FNUZ",
        "float8_e5m2fnuz": "F8_E5M2FNUZ",
        "float4_e2m1fn_x2": "F4",
    }
)
"""The safetensors name of each torch dtype that has one, as the safetensors library has them."""


def describe_tensor(name: str, tensor: torch.Tensor, file: str) -> TensorInfo:
    """What the tensor is. Raises `FormatError` for one that has no plain bytes to store."""
    import torch  # pyright: ignore[reportMissingImports]

    dtype = _names().get(tensor.dtype)
    if dtype is None:
        refuse(file, f"its dtype {tensor.dtype} has no counterpart", tensor=name)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        refuse(file, "it is sparse, quantized or without data", tensor=name)
    size_bytes = tensor.numel() * tensor.element_size()
    if size_bytes > tensor.untyped_storage().nbytes():
        # A view may repeat what it has at will: a small file would become any size.
        refuse(file, "it repeats its elements: save it with .contiguous()", tensor=name)
    shape = tuple(tensor.shape)
    if dtype == "F4":
        # Torch counts pairs, which share a byte.
        shape = (*shape[:-1], shape[-1] * 2) if shape else (2,)
    return TensorInfo(name=name, dtype=dtype, shape=shape, size_bytes=size_bytes)


def raw_view(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's bytes, row-major and little-endian; a copy only where it lies otherwise."""
    import torch  # pyright: ignore[reportMissingImports]

    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    # Not reshape: of a dimension of one element it would keep any stride.
    flat = plain.as_strided((plain.numel(),), (1,))
    raw: NDArray[Any] = flat.view(torch.uint8).numpy()
    return raw


@cache
def _names() -> Mapping[torch.dtype, str]:
    import torch  # pyright: ignore[reportMissingImports]

    # Older versions of torch lack the newest dtypes.
    return {
        getattr(torch, torch_name): n
        for torch_name, n in NAMES.items()
        if hasattr(torch, torch_name)
    }
