"""Gradients as they are after a backward pass: how large each is, and which weights have one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.errors import InvalidInputError
from arc_halo.tensors.torch_tensors import as_array
from arc_halo.training.wrappers import unwrapped

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCOPE = "gradients"
"""The scope of the series that have the norm of each weight's gradient, by the weight's name."""

TOTAL = "gradient_norm"
"""The norm of all of them together, which stands beside the loss."""

COMPILED = "_orig_mod."
"""What stands before the names of what is compiled within a module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """The gradient of one weight; `value` and `norm` are None where it has none this time."""

    name: str
    requires_grad: bool
    norm: float | None
    value: Any

    def array(self) -> NDArray[Any]:
        """Its values in their own dtype."""
        if not _is_torch(self.value):
            return np.asarray(self.value)
        dense = self.value.to_dense() if _is_sparse(self.value) else self.value
        return as_array(dense)


def read(source: Any) -> list[Gradient]:
    """The gradients of a torch module, or those of a mapping of names to arrays or tensors.

    None in a mapping says that the weight requires none. Raises `InvalidInputError` for what is
    neither, and for what has no numbers.
    """
    found = list(_named(source))
    norms = _norms([(name, value) for name, _, value in found if value is not None])
    return [
        Gradient(name=name, requires_grad=requires, norm=norms.get(name), value=value)
        for name, requires, value in found
    ]


def total_norm(gradients: Iterable[Gradient]) -> float | None:
    """The norm of all of them as one vector; None where there are none."""
    norms = [each.norm for each in gradients if each.norm is not None]
    if any(map(math.isnan, norms)):
        return math.nan
    return math.hypot(*norms) if norms else None


def _named(source: Any) -> Iterator[tuple[str, bool, Any]]:
    """The name of each weight, whether it requires a gradient, and the one it has."""
    if isinstance(source, Mapping):
        for name, value in source.items():
            yield str(name), value is not None, value
        return
    source = unwrapped(source)
    if not hasattr(source, "named_parameters"):
        raise InvalidInputError(
            f"a {type(source).__name__} has no gradients",
            hint="give a torch module, or arrays by the names of their weights",
        )
    for name, parameter in source.named_parameters():
        requires = bool(parameter.requires_grad)
        yield name.replace(COMPILED, ""), requires, parameter.grad if requires else None


def _norms(gradients: Sequence[tuple[str, Any]]) -> dict[str, float]:
    norms: dict[str, float] = {}
    waiting: dict[str, list[tuple[str, Any]]] = {}
    for name, value in gradients:
        if _is_torch(value):
            waiting.setdefault(str(value.device), []).append((name, _torch_norm(value)))
        else:
            norms[name] = _array_norm(name, value)
    for of_device in waiting.values():
        # Asked for together: each question alone would wait for the device.
        import torch  # pyright: ignore[reportMissingImports]

        found = torch.stack([norm for _, norm in of_device]).tolist()
        norms |= dict(zip((name for name, _ in of_device), found, strict=True))
    return norms


def _array_norm(name: str, value: Any) -> float:
    try:
        array = np.asarray(value)
        wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    except (TypeError, ValueError) as exc:
        raise InvalidInputError(f"the gradient of {name} is not of numbers: {exc}") from exc
    return float(np.linalg.norm(wide.ravel()))


def _torch_norm(gradient: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    values = gradient.detach()
    if _is_sparse(values):
        values = (values.coalesce() if values.layout == torch.sparse_coo else values).values()
    if values.is_complex():
        values = torch.view_as_real(values)
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(values, dtype=wide)


def _is_sparse(tensor: Any) -> bool:
    return str(tensor.layout) != "torch.strided"


def _is_torch(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"
