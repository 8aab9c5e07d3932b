"""Whether models can be fused: the same tensors, of the same shapes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arc_halo.errors import IncompatibleModelsError
from arc_halo.store.builds import NamedTensor
from arc_halo.tensors import dtypes

SHOWN = 10

Tensors = Mapping[str, NamedTensor]


def check(models: Sequence[tuple[str, Tensors]]) -> None:
    """Refuse models that differ, in one error that lists the first ten tensors concerned."""
    first_name, first = models[0]
    problems: list[str] = []
    for name, tensors in models[1:]:
        problems += _differences(first_name, first, name, tensors)
    problems += [
        f"{tensor.name}: dtype {tensor.dtype} cannot be averaged"
        for tensor in first.values()
        if not is_computable(tensor.dtype)
        and any(tensors.get(tensor.name, tensor).digest != tensor.digest for _, tensors in models)
    ]
    if not problems:
        return
    listed = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    names = ", ".join(name for name, _ in models)
    raise IncompatibleModelsError(
        f"{names} cannot be fused:{listed}{more}",
        hint="fuse models of one architecture; `arc-halo show model/NAME` shows their tensors",
    )


def is_computable(dtype: str) -> bool:
    """Whether tensors of this dtype can be averaged; others can only be taken as they are."""
    found = dtypes.get_dtype(dtype)
    return found.is_float and found.numpy_name is not None


def _differences(first_name: str, first: Tensors, name: str, tensors: Tensors) -> list[str]:
    problems = [f"{missing}: only in {first_name}" for missing in first.keys() - tensors.keys()]
    problems += [f"{extra}: only in {name}" for extra in tensors.keys() - first.keys()]
    for key in first.keys() & tensors.keys():
        a, b = first[key], tensors[key]
        if a.shape != b.shape:
            problems.append(f"{key}: shape {a.shape} in {first_name}, {b.shape} in {name}")
        elif a.dtype != b.dtype:
            problems.append(f"{key}: dtype {a.dtype} in {first_name}, {b.dtype} in {name}")
    return sorted(problems)
