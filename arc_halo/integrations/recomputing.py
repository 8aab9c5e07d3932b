"""Gradient checkpointing of a torch module: the layers of a plan keep their input alone, and are
computed again when the backward pass comes to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from arc_halo.errors import ArcHaloError, InvalidInputError
from arc_halo.training.recomputing import Layers, RecomputingPlan, modules_of, plan
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from torch import nn  # pyright: ignore[reportMissingImports]

    from arc_halo.training.sessions import TrainingSession

CACHES = {"past_key_values": None, "past_key_value": None, "layer_past": None, "use_cache": False}
"""Arguments of layers by which keys and values are kept: a second pass would keep them twice."""


def recompute(
    module: nn.Module,
    run: TrainingSession | None = None,
    *,
    layers: Layers | None = None,
    modules: str | None = None,
) -> RecomputingPlan | None:
    """Have layers of a module computed again, as the training of `run` declares or as is said here.

    `layers` is `all`, `none`, `{"every": 2}` or a list of numbers, `modules` the name of the list
    of layers where the family of the model does not say it; named alone, all of it. The plan is
    recorded with the session. What an earlier call had asked of the module holds no more; None
    where nobody asks for anything. Losses, gradients, the names of parameters and the random
    numbers drawn stay what they are. Raises `InvalidInputError` for layers that the module does not
    have.
    """
    asked = _asked(run, layers, modules)
    if asked is None:
        restore(module)
        return None
    architecture = _architecture(module, run)
    place = asked.pop("modules") or modules_of(architecture)
    name, found = _layers_of(module, place)
    decided = plan(architecture, modules=name, layer_count=len(found), **asked)
    restore(module)
    for layer, planned in zip(found, decided.layers, strict=True):
        if planned.is_checkpointed:
            layer.forward = _Recomputed(layer)
    if run is not None:
        run.record_recomputing(decided)
    return decided


def restore(module: nn.Module) -> None:
    """Have all layers of a module keep what they compute, as before `recompute`."""
    for layer in module.modules():
        wrapped = layer.__dict__.get("forward")
        if isinstance(wrapped, _Recomputed):
            del layer.forward
            if wrapped.replaced is not None:
                layer.forward = wrapped.replaced


class _Recomputed:
    """The forward pass of a layer that keeps its input alone.

    It takes the place of `forward` in the layer itself, so that the names of its parameters and
    its hooks stay what they are; an object and no closure, so that the module can be copied.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.replaced = layer.__dict__.get("forward")
        self._layer = layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        torch = _torch()
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        kwargs |= {name: off for name, off in CACHES.items() if name in kwargs}
        return torch.utils.checkpoint.checkpoint(
            self._forward, *args, use_reentrant=False, preserve_rng_state=True, **kwargs
        )

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        return type(self._layer).forward(self._layer, *args, **kwargs)


def _asked(
    run: TrainingSession | None, layers: Layers | None, modules: str | None
) -> dict[str, Any] | None:
    """The arguments of a plan: what is declared, with what is given in its place."""
    if modules is not None and not isinstance(modules, str):
        raise InvalidInputError(
            "`modules` is the name of the list that has the layers, and only one",
            hint='write modules="model.layers", and say which of them by `layers`',
            code="AH006",
        )
    declared = run.training.gradient_checkpointing if run and run.training else None
    if declared is None and layers is None:
        if modules is None:
            return None
        layers = "all"
    asked: dict[str, Any] = asdict(declared) if declared else {"modules": None}
    given = {"layers": layers, "modules": modules}
    return asked | {name: value for name, value in given.items() if value is not None}


def _architecture(module: nn.Module, run: TrainingSession | None) -> JsonObject:
    """The config of the model: that of the training's, or that which transformers gave the
    module."""
    if run is not None and run.training is not None:
        return run.training.architecture
    to_dict = getattr(getattr(module, "config", None), "to_dict", None)
    return to_dict() if to_dict is not None else {}


def _layers_of(module: nn.Module, place: str) -> tuple[str, Sequence[nn.Module]]:
    """The list of layers of that name, which may stand within a wrapper, and its whole name."""
    nn = _torch().nn
    lists: dict[str, Any] = {
        name: each
        for name, each in module.named_modules()
        if name and isinstance(each, nn.ModuleList | nn.Sequential) and any(each.children())
    }
    names = [place] if place in lists else [name for name in lists if _is_same(name, place)]
    if len(names) != 1:
        raise InvalidInputError(
            f"{type(module).__name__} has {'several' if names else 'no'} lists of layers {place!r}",
            hint=f"there are {', '.join(names or lists) or 'none'}: write `modules: NAME`",
            code="AH027",
        )
    return names[0], list(lists[names[0]])


def _is_same(name: str, place: str) -> bool:
    """Whether one is the other within a wrapper: `module.model.layers`, or `layers` alone."""
    return f".{name}".endswith(f".{place}") or f".{place}".endswith(f".{name}")


def _torch() -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import torch.utils.checkpoint  # pyright: ignore[reportMissingImports]
    except ImportError as exc:
        raise ArcHaloError(
            "torch is not installed", hint="pip install 'arc-halo[torch]'", code="AH030"
        ) from exc
    return torch
