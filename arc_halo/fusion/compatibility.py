"""Whether models can be fused: the same tensors, of the same shapes and dtypes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from arc_halo.errors import IncompatibleModelsError
from arc_halo.tensors import dtypes

SHOWN = 10
VOCABULARY_WORDS = ("embed", "wte", "lm_head", "output.weight")


class Known(Protocol):
    """A tensor of a file or of the database, as far as it matters here."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def digest(self) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Table:
    """A model's tensors by name."""

    name: str
    tensors: Mapping[str, Known]


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor that was not read: nobody knows its digest."""

    dtype: str
    shape: Sequence[int]
    digest: bytes | None = None


def is_computable(dtype: str) -> bool:
    """Whether tensors of this dtype can be averaged; others can only be taken as they are."""
    found = dtypes.get_dtype(dtype)
    return found.is_float and found.numpy_name is not None


def name_problems(models: Sequence[Table]) -> Iterator[str]:
    """The tensors that one model has and another lacks."""
    first = models[0]
    for other in models[1:]:
        for name in first.tensors.keys() - other.tensors:
            yield f"{name}: only in {first.name}"
        for name in other.tensors.keys() - first.tensors:
            yield f"{name}: only in {other.name}"


def source_problems(sources: Sequence[tuple[Table, str]], *, is_free: bool) -> Iterator[str]:
    """What keeps these tensors, each of a model and a name, from being fused with the first.

    Floats of different dtypes can be where it `is_free` what is written.
    """
    (first_model, first_name), *others = sources
    first = first_model.tensors[first_name]
    for model, name in others:
        tensor = model.tensors[name]
        pair = f"{{}} in {first_model.name}, {{}} in {model.name}"
        is_both = is_computable(first.dtype) and is_computable(tensor.dtype)
        if list(first.shape) != list(tensor.shape):
            yield f"{name}: shape {pair.format(list(first.shape), list(tensor.shape))}"
        elif first.dtype != tensor.dtype and not (is_free and is_both):
            yield f"{name}: dtype {pair.format(first.dtype, tensor.dtype)}"
        elif not is_both and _differ(first.digest, tensor.digest):
            yield f"{name}: dtype {first.dtype} cannot be averaged"


def refuse(models: Sequence[Table], problems: Sequence[str]) -> None:
    """Raise `IncompatibleModelsError` for the problems, if there are any; it lists ten of them."""
    if not problems:
        return
    problems = sorted(problems)
    listed = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    names = ", ".join(model.name for model in models)
    raise IncompatibleModelsError(
        f"{names} cannot be fused:{listed}{more}", hint=_hint(list(problems))
    )


def _differ(first: bytes | None, second: bytes | None) -> bool:
    return first is not None and second is not None and first != second


def _hint(problems: Sequence[str]) -> str:
    if all("shape" in each and any(w in each for w in VOCABULARY_WORDS) for each in problems):
        return "their vocabularies differ: align them by `tokenizer: union` in the reactor"
    if all(": dtype" in each and "averaged" not in each for each in problems):
        return "say what is to be written: `out_dtype: BF16`"
    return "fuse models of one architecture and one dtype"
