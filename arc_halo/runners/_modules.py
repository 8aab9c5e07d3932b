"""A transformers module made from its config, its parameters those of the tensor store."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from arc_halo.errors import MemberError
from arc_halo.tensors.torch_tensors import as_torch
from arc_halo.types import JsonObject, RunnerContext

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]

LEFT_OUT = ("auto_map", "dtype", "torch_dtype", "_name_or_path", "_attn_implementation",
            "attn_implementation")  # fmt: skip
"""What a config may say and is not heard: code of others, and the dtype, which is a param."""


def load_module(context: RunnerContext, dtype: str, device: torch.device) -> Any:
    """The causal language model of the context, in that dtype on that device, ready to be asked.

    Tensor by tensor: each is read into its place, and no second copy of the model is made, nor one
    on the way to the device. Raises `MemberError` for an architecture that transformers does not
    know, and for weights that are not those of the architecture.
    """
    import torch  # pyright: ignore[reportMissingImports]

    module = _empty(context.architecture)
    with torch.no_grad():
        _fill(module, context, getattr(torch, dtype), device)
    # What follows is what no file has: buffers that the architecture computes.
    return module.to(device).eval()


def _empty(architecture: JsonObject) -> Any:
    """The module with parameters that take no memory; its buffers are as it computes them."""
    # By name: a type checker that has no such package takes the runner beside this file for it.
    transformers: Any = import_module("transformers")
    said = {name: value for name, value in architecture.items() if name not in LEFT_OUT}
    model_type = said.pop("model_type", None)
    if not isinstance(model_type, str):
        raise MemberError(
            "its architecture has no `model_type`",
            hint="give it the config.json that transformers wrote",
        )
    try:
        with _parameters_on_meta():
            config = transformers.AutoConfig.for_model(model_type, **said)
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as exc:
        raise MemberError(
            f"transformers makes no causal language model of its architecture: {exc}",
            hint="`transformers` runs what AutoModelForCausalLM knows",
        ) from exc


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters that this thread gives to modules have a shape, and no memory."""
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn.modules import module as modules  # pyright: ignore[reportMissingImports]

    me = threading.get_ident()

    def register(owner: Any, name: str, parameter: Any) -> Any:
        if parameter is None or parameter.is_meta or threading.get_ident() != me:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    handle = modules.register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def _fill(module: Any, context: RunnerContext, dtype: torch.dtype, device: torch.device) -> None:
    places = _places(module)
    filled: dict[int, tuple[str, Any]] = {}
    surplus = []
    for info, array in context.tensors():
        name = info.name if info.name in places else f"{module.base_model_prefix}.{info.name}"
        if name not in places:
            if not _is_ignored(module, info.name):
                surplus.append(info.name)
            continue
        place = places[name]
        _check_shape(info.name, info.shape, tuple(place.old.shape))
        tensor = as_torch(array, info.dtype)
        tensor = tensor.to(device, dtype if place.old.is_floating_point() else tensor.dtype)
        known = filled.get(id(place.old))
        if known is None:
            filled[id(place.old)] = (info.name, tensor)
            place.put(tensor)
        elif not tensor.equal(known[1]):
            raise MemberError(
                f"{known[0]} and {info.name} differ, and its architecture ties them",
                hint="say `tie_word_embeddings: false` in its architecture",
            )
    missing = [name for name, place in places.items() if id(place.old) not in filled]
    _check_names(missing, surplus)


class _Place:
    """Where a tensor belongs: every module that has it, under whatever name."""

    def __init__(self, old: Any) -> None:
        self.old = old
        self._owners: list[tuple[dict[str, Any], str]] = []

    def add(self, owner: dict[str, Any], name: str) -> None:
        self._owners.append((owner, name))

    def put(self, tensor: Any) -> None:
        from torch import nn  # pyright: ignore[reportMissingImports]

        is_parameter = isinstance(self.old, nn.Parameter)
        new = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
        for owner, name in self._owners:
            owner[name] = new


def _places(module: Any) -> dict[str, _Place]:
    """By the names of the state dict; names that are tied have one place."""
    by_identity: dict[int, _Place] = {}
    named: dict[str, _Place] = {}
    for prefix, owner in module.named_modules():
        temporary = owner._non_persistent_buffers_set
        for values, left_out in ((owner._parameters, ()), (owner._buffers, temporary)):
            for name, value in values.items():
                if value is not None and name not in left_out:
                    place = by_identity.setdefault(id(value), _Place(value))
                    place.add(values, name)
                    named[f"{prefix}.{name}" if prefix else name] = place
    return named


def _is_ignored(module: Any, name: str) -> bool:
    """Whether the architecture says of a tensor in files that it does not use it."""
    patterns = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _check_shape(name: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if stored != wanted:
        raise MemberError(
            f"{name} is {list(stored)}, and {list(wanted)} in its architecture",
            hint="its weights and its `architecture` are not of one model",
        )


def _check_names(missing: list[str], surplus: list[str]) -> None:
    said = [
        f"{what} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for what, names in (("its weights lack", missing), ("its architecture has no", surplus))
        if names
    ]
    if said:
        raise MemberError(
            "; ".join(said), hint="its weights and its `architecture` are not of one model"
        )
