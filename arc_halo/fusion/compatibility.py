"""Whether models can be fused: the same tensors, of the same shapes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from arc_halo.errors import IncompatibleModelsError
from arc_halo.store.builds import NamedTensor
from arc_halo.tensors import dtypes

SHOWN = 10


class Shaped(Protocol):
    """A tensor of a file or of the database, as far as it matters here."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...


def check_shapes(models: Sequence[tuple[str, Mapping[str, Shaped]]]) -> None:
    """Refuse models whose tensors differ in name, shape or dtype.

    Raises `IncompatibleModelsError`, which lists the first ten tensors concerned.
    """
    first_name, first = models[0]
    problems: list[str] = []
    for name, tensors in models[1:]:
        problems += _differences(first_name, first, name, tensors)
    _refuse(models, problems)


def check_contents(models: Sequence[tuple[str, Mapping[str, NamedTensor]]]) -> None:
    """Refuse models that differ in tensors of which no average can be made."""
    _, first = models[0]
    _refuse(
        models,
        [
            f"{tensor.name}: dtype {tensor.dtype} cannot be averaged"
            for tensor in first.values()
            if not is_computable(tensor.dtype)
            and any(tensors[tensor.name].digest != tensor.digest for _, tensors in models)
        ],
    )


def is_computable(dtype: str) -> bool:
    """Whether tensors of this dtype can be averaged; others can only be taken as they are."""
    found = dtypes.get_dtype(dtype)
    return found.is_float and found.numpy_name is not None


def _refuse(models: Sequence[tuple[str, object]], problems: Sequence[str]) -> None:
    if not problems:
        return
    listed = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    names = ", ".join(name for name, _ in models)
    raise IncompatibleModelsError(
        f"{names} cannot be fused:{listed}{more}",
        hint="fuse models of one architecture and one dtype",
    )


def _differences(
    first_name: str, first: Mapping[str, Shaped], name: str, tensors: Mapping[str, Shaped]
) -> list[str]:
    problems = [f"{missing}: only in {first_name}" for missing in first.keys() - tensors.keys()]
    problems += [f"{extra}: only in {name}" for extra in tensors.keys() - first.keys()]
    for key in first.keys() & tensors.keys():
        a, b = first[key], tensors[key]
        if list(a.shape) != list(b.shape):
            shapes = f"{list(a.shape)} in {first_name}, {list(b.shape)} in {name}"
            problems.append(f"{key}: shape {shapes}")
        elif a.dtype != b.dtype:
            problems.append(f"{key}: dtype {a.dtype} in {first_name}, {b.dtype} in {name}")
    return sorted(problems)
