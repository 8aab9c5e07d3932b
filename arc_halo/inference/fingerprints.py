"""What a torch module computes with, as digests: of its weights, and of the adapters in it.

A cache of anything that a model computed is keyed by both, so that of other weights there is
nothing in it. What else changes a module's outputs, such as hooks or a forward of somebody's own,
is not seen here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from arc_halo.tensors import digests, dtypes
from arc_halo.tensors.torch_tensors import as_array

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]

logger = logging.getLogger("arc_halo.inference")

THREADS = 8
"""At most; hashing one is as fast as memory is read, and each holds a tensor of a GPU."""

Stamps: TypeAlias = dict[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleWeights:
    """The root of all tensors of a module, and what the registry may know it by: the digests of
    its tensors, and which of them are parameters, with a number that tied ones have in common."""

    root: bytes
    tensors: Mapping[str, bytes]
    parameters: Mapping[str, int]


def weights_root(module: torch.nn.Module) -> bytes:
    """The root over all parameters and buffers, persistent or not, by name.

    For a module whose tensors are those of a file, and no more, it is the root of the model that
    was imported from it. Raises `InvalidInputError` for tensors whose values are not plainly there.
    """
    return module_weights(module).root


def module_weights(module: torch.nn.Module) -> ModuleWeights:
    """The same, with what it is the root of. Tied tensors are hashed once, and named as often as
    they are there."""
    tensors = dict(_tensors(module))
    shared = {_place(tensor): tensor for tensor in tensors.values()}
    # The largest first, so that none of the threads is left with one at the end.
    order = sorted(shared.items(), key=lambda item: -item[1].nbytes)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        found = pool.map(_digest, (tensor for _, tensor in order))
        by_place = {place: digest for (place, _), digest in zip(order, found, strict=True)}
    named = {name: by_place[_place(tensor)] for name, tensor in tensors.items()}
    numbers = {place: number for number, place in enumerate(shared)}
    return ModuleWeights(
        root=digests.weights_root(named.items()),
        tensors=named,
        parameters={
            name: numbers[_place(tensors[name])]
            for name, _ in module.named_parameters(remove_duplicate=False)
        },
    )


def adapter_state(module: torch.nn.Module) -> bytes:
    """Digest of which adapters are active, disabled and merged where, and how they are scaled.

    Empty where there are no layers as peft makes them. What the adapters' weights are is part of
    `weights_root`.
    """
    states = {
        name: state for name, part in module.named_modules() if (state := _adapters(part)) != {}
    }
    if not states:
        return b""
    text = json.dumps(states, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"arc-halo/adapters/1\0" + text.encode()).digest()


class Fingerprint:
    """The `weights_root` of a module, computed again only where something may have changed.

    Noticed are tensors that came, went, or were replaced, moved or written to in place, and
    adapters that were merged or came off. Not noticed are writes that torch keeps no count of:
    through `tensor.data`, a numpy array over the same memory, or a kernel of somebody's own; nor a
    merge of adapters that was undone between two looks, which leaves other bits. After those call
    `refresh`.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._stamps: Stamps | None = None
        self._adapters = b""
        self._weights: ModuleWeights | None = None
        self._has_told = False

    def weights(self) -> ModuleWeights:
        """As of now."""
        stamps, adapters = _stamps(self._module), adapter_state(self._module)
        if stamps is None and not self._has_told:
            self._has_told = True
            logger.warning(
                "torch counts no writes to these weights, so they are hashed at every look: load "
                "the model outside of torch.inference_mode"
            )
        is_known = stamps is not None and stamps == self._stamps and adapters == self._adapters
        if self._weights is None or not is_known:
            self._weights = module_weights(self._module)
            self._stamps, self._adapters = stamps, adapters
        return self._weights

    def digest(self) -> bytes:
        """The root as of now."""
        return self.weights().root

    def refresh(self) -> bytes:
        """The root, computed again whatever is known of changes."""
        self._stamps = None
        return self.digest()


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What tied tensors have in common, and others do not, while all of them are alive."""
    if type(tensor).__name__ not in ("Tensor", "Parameter") or not tensor.numel():
        return (id(tensor),)
    is_odd = tensor.is_conj() or tensor.is_neg()
    return (
        tensor.data_ptr(),
        tensor.device,
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
        id(tensor) if is_odd else None,
    )


def _digest(tensor: torch.Tensor) -> bytes:
    array = as_array(tensor)
    raw = array.reshape(-1).view("u1").data
    return digests.tensor_digest(dtypes.name_of(array.dtype), array.shape, raw)


def _adapters(part: torch.nn.Module) -> dict[str, Any]:
    """What peft's layers say of themselves; nothing where a module is no such layer."""
    if not any(hasattr(part, name) for name in ("disable_adapters", "merged_adapters")):
        return {}
    scaling = getattr(part, "scaling", None)
    return {
        "active": _names(getattr(part, "active_adapters", ())),
        "disabled": bool(getattr(part, "disable_adapters", False)),
        "merged": _names(getattr(part, "merged_adapters", ())),
        "scaling": {key: repr(value) for key, value in scaling.items()}
        if isinstance(scaling, Mapping)
        else {},
    }


def _names(value: Any) -> list[str]:
    """`active_adapters` is one name in some versions; a method belongs to no layer."""
    if callable(value):
        return []
    return [value] if isinstance(value, str) else [str(each) for each in value or ()]


def _stamps(module: torch.nn.Module) -> Stamps | None:
    """What changes when a tensor does; None where that cannot be told.

    A weak reference keeps the storage's address from being given to another, not its memory.
    """
    from torch.multiprocessing.reductions import (  # pyright: ignore[reportMissingImports]
        StorageWeakRef,
    )

    try:
        return {
            name: (
                StorageWeakRef(tensor.untyped_storage()),
                tensor.data_ptr(),
                tensor._version,
                tensor.shape,
                tensor.stride(),
                tensor.dtype,
                tensor.device,
            )
            for name, tensor in _tensors(module)
        }
    except (RuntimeError, NotImplementedError):
        # Tensors made in inference mode count no writes; some others have no storage.
        return None
