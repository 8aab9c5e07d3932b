"""What a model was given, as arrays by name, and the digest that names it.

    digest = H("arc-halo/input/1", then of each part, by name: name, dtype, shape, bytes)

with H the SHA-256 of the fields, each after its length as 8 bytes, little-endian. What says nothing
is left out, so that it does not matter who wrote it down: a mask that hides nothing, and positions
that count from 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.errors import FormatError, InvalidInputError
from arc_halo.names import is_storable
from arc_halo.tensors import dtypes
from arc_halo.tensors.torch_tensors import as_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

IDS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"

Parts = Mapping[str, "NDArray[Any]"]


def input_digest(parts: Parts) -> bytes:
    """The digest of what a model was given, whole numbers whatever their width."""
    digest = hashlib.sha256()
    _feed(digest, b"arc-halo/input/1")
    for name, array in sorted(telling(parts).items()):
        dtype = dtypes.name_of(array.dtype)
        shape = ",".join(map(str, array.shape))
        for field in (name.encode(), dtype.encode(), shape.encode(), dtypes.raw_bytes(array)):
            _feed(digest, field)
    return digest.digest()


def telling(parts: Parts) -> dict[str, NDArray[Any]]:
    """The parts as they are digested: those that say something, in one form each."""
    found = {name: _in_one_form(name, array) for name, array in parts.items()}
    if (mask := found.get(MASK)) is not None and mask.dtype == bool and mask.all():
        del found[MASK]
    positions = found.get(POSITIONS)
    if positions is not None and positions.ndim:
        counted = np.broadcast_to(np.arange(positions.shape[-1]), positions.shape)
        if np.array_equal(positions, counted):
            del found[POSITIONS]
    return found


def given_ids(ids: Any) -> NDArray[np.int64]:
    """Tokens as a batch: a list is one sequence. `InvalidInputError` for what are none."""
    try:
        array = plain_array(ids)
    except (TypeError, ValueError) as exc:
        raise InvalidInputError(f"these are no tokens: {exc}", code="AH006") from exc
    if array.ndim not in (1, 2) or not array.size or array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"tokens are whole numbers, [tokens] or [batch, tokens]: not "
            f"{array.dtype} of shape {list(array.shape)}",
            hint="give what the model was given as `input_ids`",
            code="AH006",
        )
    return np.atleast_2d(array).astype(np.int64)


def given_parts(
    ids: Any, mask: Any = None, others: Mapping[str, Any] | None = None
) -> dict[str, NDArray[Any]]:
    """What is asked for, as a model would have been given it."""
    named: Any = {} if others is None else others
    if not isinstance(named, Mapping) or not all(map(_is_name, named)):
        raise InvalidInputError(
            f"inputs={others!r} is nothing by name",
            hint='write {"position_ids": …}: what the model was given, by the names it has there',
            code="AH006",
        )
    parts = {name: _numbers(name, value) for name, value in named.items()}
    if ids is not None:
        parts[IDS] = given_ids(ids)
    if mask is not None:
        parts[MASK] = np.atleast_2d(_numbers("attention_mask", mask))
    if not parts:
        raise InvalidInputError(
            "activations are of an input", hint="give the input_ids that were captured with"
        )
    return parts


def _is_name(name: object) -> bool:
    return isinstance(name, str) and is_storable(name)


def _numbers(name: str, value: Any) -> NDArray[Any]:
    """As a module would have been given it. A text is its bytes."""
    if isinstance(value, str):
        return text_array(value)
    try:
        array = plain_array(value)
        dtypes.name_of(array.dtype)
    except (FormatError, TypeError, ValueError) as exc:
        raise InvalidInputError(
            f"{name}={value!r} are no numbers", hint="give a tensor or a list", code="AH006"
        ) from exc
    return array


def text_array(text: str) -> NDArray[np.uint8]:
    """A text that a module was given, as numbers."""
    return np.frombuffer(text.encode(errors="surrogatepass"), np.uint8)


def plain_array(value: Any) -> NDArray[Any]:
    """A torch tensor, an array or a list of numbers as an array."""
    if type(value).__module__.partition(".")[0] == "torch":
        return as_array(value)
    return np.asarray(value)


def joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """What came token by token, along the tokens."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _in_one_form(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if name == MASK and array.ndim == 2:
        is_seen: NDArray[Any] = array != 0
        return is_seen
    if name in (IDS, POSITIONS) and array.dtype.kind in "iu":
        return array.astype(np.int64)
    return array


def _feed(digest: Any, field: bytes | memoryview) -> None:
    digest.update(len(field).to_bytes(8, "little"))
    digest.update(field)
