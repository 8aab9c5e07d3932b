"""What holds state: modules, optimizers, schedulers, samplers, and plain mappings of arrays."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arc_halo.errors import CheckpointError, FormatError, InvalidInputError
from arc_halo.tensors import dtypes
from arc_halo.tensors.torch_tensors import as_array, as_torch
from arc_halo.training.wrappers import unwrapped

if TYPE_CHECKING:
    from numpy.typing import NDArray

LISTED = 5
"""Problems that a message lists; the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """A model's tensors by name. `rest` has other `values` by name, and a module's `metadata`."""

    arrays: Mapping[str, NDArray[Any]]
    rest: Mapping[str, Any] = field(default_factory=dict)


def state_of(holder: Any) -> Any:
    """The state of what has a `state_dict()`, of lists and mappings of such, or the value."""
    if hasattr(holder, "state_dict"):
        return holder.state_dict()
    if type(holder) in (list, tuple) and any(map(_has_state, holder)):
        return [state_of(each) for each in holder]
    if isinstance(holder, Mapping) and any(map(_has_state, holder.values())):
        return {key: state_of(each) for key, each in holder.items()}
    return holder


def check_fits(part: str, holder: Any, state: Any) -> None:
    """Raise `CheckpointError` where `load_into` has nowhere to put the state."""
    if hasattr(holder, "load_state_dict"):
        return
    if isinstance(holder, Sequence) and not isinstance(holder, str | bytes):
        if not isinstance(state, Sequence) or len(state) != len(holder):
            raise CheckpointError(f"{part}: {len(holder)} are given, the checkpoint has another")
        for one, its_state in zip(holder, state, strict=True):
            check_fits(part, one, its_state)
    elif isinstance(holder, MutableMapping):
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{part}: a mapping is given, the checkpoint has none")
        if any(map(_has_state, holder.values())):
            if holder.keys() != state.keys():
                names = ", ".join(map(repr, state))
                raise CheckpointError(f"{part}: the checkpoint has {names}, not what is given")
            for key, one in holder.items():
                check_fits(part, one, state[key])
    else:
        raise CheckpointError(
            f"{part}: nothing can be restored into a {type(holder).__qualname__}",
            hint="give what has load_state_dict(), or a mapping",
        )


def load_into(part: str, holder: Any, state: Any) -> None:
    """Put a state, for which `check_fits`, where it came from; a plain mapping becomes it."""
    if hasattr(holder, "load_state_dict"):
        _load(part, holder, state)
    elif isinstance(holder, Sequence):
        for one, its_state in zip(holder, state, strict=True):
            load_into(part, one, its_state)
    elif any(map(_has_state, holder.values())):
        for key, one in holder.items():
            load_into(part, one, state[key])
    else:
        holder.clear()
        holder.update(state)


def model_state(model: Any, *, copy: bool = False) -> ModelState:
    """The tensors of a module, of several by name, or of a mapping of arrays.

    Raises `CheckpointError` for a tensor that cannot be stored, and `InvalidInputError` for a
    model that has none. Without `copy` the arrays may share the model's memory.
    """
    arrays: dict[str, NDArray[Any]] = {}
    others: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for prefix, member in _members(model):
        values = _values(member)
        for name, value in values.items():
            if not isinstance(name, str):
                raise CheckpointError(f"model: {name!r} is no name of a tensor: it is no text")
            if _is_tensor(value):
                arrays[prefix + name] = _array(prefix + name, value, copy)
            else:
                others[prefix + name] = value
        if (versions := getattr(values, "_metadata", None)) is not None:
            metadata[prefix] = {key: dict(each) for key, each in versions.items()}
    if not arrays:
        raise InvalidInputError("the model has no tensors", hint="give a module, or named arrays")
    rest = {"values": others, "metadata": metadata}
    return ModelState(arrays=arrays, rest=rest if others or metadata else {})


def check_model(model: Any, arrays: Mapping[str, NDArray[Any]], rest: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the model has exactly these tensors, shapes and dtypes."""
    problems = list(_problems(model, arrays, rest))
    if problems:
        more = len(problems) - LISTED
        listed = problems[:LISTED] + ([f"and {more} more"] if more > 0 else [])
        raise CheckpointError(
            "the model is not that of the checkpoint:\n  " + "\n  ".join(listed),
            hint="build the model as it was; nothing was restored",
        )


def load_model(model: Any, arrays: Mapping[str, NDArray[Any]], rest: Mapping[str, Any]) -> None:
    """Put the tensors into a model that `check_model` found to be theirs."""
    stored = {**rest.get("values", {}), **arrays}
    for prefix, member in _members(model):
        new = OrderedDict(
            (name, _like(value, stored[prefix + name])) for name, value in _values(member).items()
        )
        if hasattr(member, "load_state_dict"):
            if prefix in rest.get("metadata", {}):
                new.__dict__["_metadata"] = rest["metadata"][prefix]
            _load("model", member, new)
        else:
            _copy_into(member, new)


def _load(part: str, holder: Any, state: Any) -> None:
    try:
        holder.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as exc:
        raise CheckpointError(
            f"{part}: {type(holder).__qualname__} does not take the state: {exc}",
            hint="build it as it was; what was restored before it stays restored",
        ) from exc
    if part == "optimizer" and hasattr(holder, "state_dict"):
        _check_dtypes(holder, state)


def _check_dtypes(optimizer: Any, state: Any) -> None:
    """Some optimizers round what they load to the dtype of the weights."""
    now = dict(_dtypes(optimizer.state_dict(), ()))
    for path, dtype in _dtypes(state, ()):
        if now.get(path, dtype) != dtype:
            raise CheckpointError(
                f"optimizer: {path} was {dtype}, and was taken as {now[path]}",
                hint="what was rounded cannot go on as it was: this optimizer cannot be resumed",
            )


def _dtypes(state: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from _dtypes(value, (*path, key))
    elif _is_tensor(state):
        yield path, state.dtype


def _members(model: Any) -> Iterator[tuple[str, Any]]:
    """The model, or, of a mapping of modules, each with the prefix of its names.

    Of one that is compiled or trained in parallel it is the module itself.
    """
    if isinstance(model, Mapping) and any(map(_has_state, model.values())):
        yield from ((f"{name}.", unwrapped(member)) for name, member in model.items())
    else:
        yield "", unwrapped(model)


def _values(member: Any) -> Mapping[Any, Any]:
    found = member.state_dict() if hasattr(member, "state_dict") else member
    if not isinstance(found, Mapping):
        raise InvalidInputError(
            f"a {type(member).__qualname__} is no model",
            hint="give a mapping of arrays, or what has state_dict() and load_state_dict()",
        )
    return found


def _problems(
    model: Any, arrays: Mapping[str, NDArray[Any]], rest: Mapping[str, Any]
) -> Iterator[str]:
    there = {
        prefix + name: value
        for prefix, member in _members(model)
        for name, value in _values(member).items()
    }
    stored = {**rest.get("values", {}), **arrays}
    yield from (f"{name}: not in the checkpoint" for name in there if name not in stored)
    yield from (f"{name}: not in the model" for name in stored if name not in there)
    for name in (name for name in there if name in arrays):
        ours, theirs = _describe(arrays[name]), _describe(there[name])
        if ours != theirs:
            yield f"{name}: {ours} in the checkpoint, {theirs} in the model"


def _describe(value: Any) -> str:
    if not _is_tensor(value):
        return f"a {type(value).__qualname__}"
    if _is_torch(value):
        name = dtypes.name_of(as_array(value.new_empty(0)).dtype)
    else:
        name = dtypes.name_of(value.dtype)
    return f"{name} {list(value.shape)}"


def _array(name: str, value: Any, copy: bool) -> NDArray[Any]:
    try:
        array: NDArray[Any] = as_array(value, copy=copy) if _is_torch(value) else value
        dtypes.name_of(array.dtype)
    except (FormatError, InvalidInputError) as exc:
        raise CheckpointError(f"model: {name!r}: {exc.message}", hint=exc.hint) from exc
    return array.copy() if copy and array is value else array


def _like(value: Any, stored: Any) -> Any:
    return as_torch(stored, dtypes.name_of(stored.dtype)) if _is_torch(value) else stored


def _copy_into(target: Any, new: Mapping[str, Any]) -> None:
    import numpy as np

    for name, value in new.items():
        if _is_torch(value):
            target[name].detach().copy_(value)
        elif isinstance(value, np.ndarray):
            np.copyto(target[name], value)
        else:
            target[name] = value


def _has_state(value: Any) -> bool:
    return hasattr(value, "state_dict")


def _is_tensor(value: Any) -> bool:
    import numpy as np

    return isinstance(value, np.ndarray) or _is_torch(value)


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
