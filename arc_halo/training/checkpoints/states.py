"""Nested states as flat leaves, tensors apart from values, and back, bit for bit.

Leaves stand in the order of the walk, each container before what it holds: by that order alone
the state is put together again. Nothing is pickled, and nothing guessed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arc_halo.errors import CheckpointError, FormatError, InvalidInputError
from arc_halo.tensors import dtypes
from arc_halo.tensors.torch_tensors import as_array, as_torch
from arc_halo.training.checkpoints import scalars

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_DEPTH = 200
"""Containers in one another at most; a state that holds itself is met here."""

MANY = 16
"""From so many numbers on, a list of them is kept as one tensor."""

LARGE_BYTES = 4096
"""From so many bytes on, they are kept as a tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One value of a state, or a container and how many entries follow for it.

    `path` is the JSON of the keys that lead to it, `value` the JSON of what it is; of a tensor
    the `value`, if there is one, says what it is read as.
    """

    path: str
    value: str | None = None
    array: NDArray[Any] | None = None


def flatten(state: object, *, copy: bool = False) -> list[Leaf]:
    """The leaves of dicts, lists, tuples, plain values, numpy arrays and torch tensors.

    With `copy` no leaf shares memory with the state. Raises `CheckpointError`, which names the
    path, for a type that is not kept.
    """
    return list(_walk(state, [], copy))


def unflatten(leaves: Sequence[Leaf]) -> Any:
    """The state that was flattened; its arrays are those of the leaves.

    Raises `CheckpointError` for leaves that no state has.
    """
    reader = _Reader(leaves)
    try:
        state = reader.read()
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        raise _broken(repr(exc)) from exc
    if reader.place != len(leaves):
        raise _broken("it goes on after its end")
    return state


def describe_path(path: Sequence[Any]) -> str:
    """`['state'][0]`, as one would write it in Python."""
    return "".join(f"[{key!r}]" for key in path) or "the state itself"


def _walk(state: Any, path: list[Any], copy: bool) -> Iterator[Leaf]:
    if len(path) > MAX_DEPTH:
        raise CheckpointError(
            f"{describe_path(path[:5])}…: containers lie deeper than {MAX_DEPTH} in one another",
            hint="a state that holds itself cannot be kept",
        )
    entries = _entries(state)
    if entries is None or _is_leaf_sequence(state):
        yield _leaf(state, path, copy)
        return
    yield Leaf(path=_path(path), value=scalars.as_text({_CONTAINERS[type(state)]: len(entries)}))
    for key, value in entries:
        _check_key(key, path)
        yield from _walk(value, [*path, key], copy)


def _entries(state: Any) -> list[tuple[Any, Any]] | None:
    if type(state) not in _CONTAINERS:
        return None
    return list(state.items() if isinstance(state, dict) else enumerate(state))


def _is_leaf_sequence(state: Any) -> bool:
    """Whether it is a list or a tuple of many numbers of one type."""
    if type(state) not in (list, tuple) or len(state) < MANY:
        return False
    kinds = set(map(type, state))
    if kinds == {int}:
        return bool(min(state) >= -scalars.SMALL_INT and max(state) < scalars.SMALL_INT)
    return kinds == {float}


def _leaf(value: Any, path: list[Any], copy: bool) -> Leaf:
    import numpy as np

    told = _path(path)
    if isinstance(value, np.ndarray | np.generic):
        return _of_numpy(value, path, copy)
    if _is_torch(value):
        array = _torch_array(value, path, copy)
        return Leaf(path=told, value='{"as":"torch"}', array=array)
    if type(value) in (list, tuple):
        dtype = "<i8" if type(value[0]) is int else "<f8"
        kind = scalars.as_text({"as": type(value).__name__})
        return Leaf(path=told, value=kind, array=np.array(value, dtype))
    if type(value) in (bytes, bytearray) and len(value) >= LARGE_BYTES:
        kind = scalars.as_text({"as": type(value).__name__})
        return Leaf(path=told, value=kind, array=np.frombuffer(bytes(value), np.uint8))
    try:
        return Leaf(path=told, value=scalars.as_text(scalars.encode(value)))
    except scalars.NotPlainError as exc:
        raise _unknown(path, str(exc)) from exc


def _of_numpy(value: Any, path: list[Any], copy: bool) -> Leaf:
    import numpy as np

    told: dict[str, Any] = {"as": "scalar"} if isinstance(value, np.generic) else {}
    if not told and type(value) not in (np.ndarray, np.memmap):
        raise _unknown(path, f"numpy.{type(value).__name__}")
    array: NDArray[Any] = np.array(value, order="C") if copy else np.asarray(value, order="C")
    if not _is_stored_as_it_is(array.dtype):
        if array.dtype.hasobject or np.dtype(array.dtype.str) != array.dtype:
            raise _unknown(path, f"an array of {array.dtype}")
        told = {"as": "array", **told, "dtype": array.dtype.str, "shape": list(array.shape)}
        array = np.frombuffer(array.tobytes(), np.uint8)
    return Leaf(path=_path(path), value=scalars.as_text(told) if told else None, array=array)


def _is_stored_as_it_is(dtype: Any) -> bool:
    try:
        return bool(dtype == dtypes.numpy_dtype(dtypes.name_of(dtype)))
    except FormatError:
        return False


def _torch_array(value: Any, path: list[Any], copy: bool) -> NDArray[Any]:
    try:
        return as_array(value, copy=copy)
    except InvalidInputError as exc:
        raise CheckpointError(f"{describe_path(path)}: {exc.message}", hint=exc.hint) from exc


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _path(path: list[Any]) -> str:
    return scalars.as_text([scalars.encode(key) for key in path])


def _check_key(key: Any, path: list[Any]) -> None:
    try:
        scalars.encode(key)
    except scalars.NotPlainError as exc:
        raise _unknown(path, f"a key of type {exc}") from exc


def _unknown(path: list[Any], what: str) -> CheckpointError:
    return CheckpointError(
        f"{describe_path(path)}: {what} cannot be kept in a checkpoint",
        hint="give dicts, lists, tuples, numbers, texts, bytes, numpy arrays or torch tensors",
    )


def _broken(why: str) -> CheckpointError:
    return CheckpointError(f"the state that is stored makes no sense: {why}")


class _Reader:
    """Leaves, read one after the other."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.place = 0
        self._leaves = leaves

    def read(self) -> Any:
        """The value that begins here."""
        leaf = self._leaves[self.place]
        self.place += 1
        value = None if leaf.value is None else json.loads(leaf.value)
        if leaf.array is not None:
            return _from_array(leaf.array, value or {})
        if isinstance(value, dict) and len(value) == 1:
            ((kind, count),) = value.items()
            if kind in _MAKERS:
                return _MAKERS[kind]([self._entry() for _ in range(count)])
        return scalars.decode(value)

    def _entry(self) -> tuple[Any, Any]:
        key = scalars.decode(json.loads(self._leaves[self.place].path)[-1])
        return key, self.read()


def _from_array(array: NDArray[Any], told: Mapping[str, Any]) -> Any:
    import numpy as np

    if "dtype" in told:
        dtype = np.dtype(told["dtype"])
        array = np.frombuffer(bytearray(array.tobytes()), dtype).reshape(told["shape"])
    match told.get("as"):
        case None | "array":
            return array
        case "torch":
            return as_torch(array, dtypes.name_of(array.dtype))
        case "scalar":
            return array[()]
        case "list":
            return array.tolist()
        case "tuple":
            return tuple(array.tolist())
        case "bytes":
            return array.tobytes()
        case "bytearray":
            return bytearray(array.tobytes())
        case other:
            raise ValueError(f"a tensor as {other!r}")


_CONTAINERS: Mapping[type, str] = {
    dict: "dict",
    OrderedDict: "ordered_dict",
    Counter: "counter",
    list: "list",
    tuple: "tuple",
}
_MAKERS: Mapping[str, Callable[[list[tuple[Any, Any]]], Any]] = {
    "dict": dict,
    "ordered_dict": OrderedDict,
    "counter": lambda entries: Counter(dict(entries)),
    "list": lambda entries: [value for _, value in entries],
    "tuple": lambda entries: tuple(value for _, value in entries),
}
