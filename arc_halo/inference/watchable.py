"""Which parts of a torch module are meant, and whether its weights decide what they give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.names import did_you_mean, is_storable

CAPTURING = "arc_halo.inference.capturing"
"""Whose hooks change nothing."""


def patterns_of(names: str | Iterable[str]) -> list[str]:
    """Patterns of names, one or several. Raises `InvalidInputError` for none, and for what is no
    text."""
    given: Any = [names] if isinstance(names, str) else names
    found = list(given) if isinstance(given, Iterable) else []
    if not found or not all(isinstance(each, str) for each in found):
        raise InvalidInputError(
            f"names={names!r} names no modules",
            hint='write a pattern or several: "model.layers.*.mlp"; "*" fits all',
            code="AH006",
        )
    return found


def named_parts(module: Any, names: Sequence[str]) -> dict[str, Any]:
    """The parts of a module whose names fit one of the patterns, with `*` and `?`.

    Raises `InvalidInputError` for a pattern that fits none.
    """
    every = dict(module.named_modules())
    found: dict[str, Any] = {}
    for pattern in names:
        fitting = {name: part for name, part in every.items() if fnmatchcase(name, pattern)}
        if not fitting:
            raise InvalidInputError(
                f"no module of {type(module).__name__} is named {pattern!r}",
                hint=did_you_mean(pattern, list(every))
                or "`dict(model.named_modules())` has them all; * and ? stand for any letters",
                code="AH020",
            )
        found |= fitting
    return {name: part for name, part in every.items() if name in found}


def check_watchable(module: Any, variant: str) -> None:
    """Raise `InvalidInputError` for a module whose activations its weights do not decide."""
    if not (isinstance(variant, str) and is_storable(variant)):
        raise InvalidInputError(
            f"variant={variant!r} is no name", hint='write a text: "without head 3"', code="AH006"
        )
    if not hasattr(module, "named_modules"):
        raise InvalidInputError(
            f"{type(module).__name__!r} is no torch module",
            hint="give a model of torch or transformers: pip install 'arc-halo[torch]'",
        )
    if hasattr(module, "_orig_mod"):
        raise InvalidInputError(
            "a compiled module runs without hooks",
            hint="capture on the module that it was made of",
        )
    training = [name for name, part in module.named_modules() if part.training]
    if training:
        raise InvalidInputError(
            f"the model is in training mode ({training[0] or 'all of it'}): dropout makes every "
            "pass another",
            hint="call model.eval() first",
        )
    foreign = [name for name, part in module.named_modules() if _is_changed(part)]
    if foreign and not variant:
        raise InvalidInputError(
            f"{foreign[0] or 'the model'} has hooks, or a forward of its own: what these change is "
            "not in the weights",
            hint='remove them, or name what they do: variant="without head 3"',
        )


def _is_changed(part: Any) -> bool:
    has_hooks = any(not _only_notes(hook) for hook in _hooks(part))
    # accelerate puts one there that moves tensors to where the weights are.
    return has_hooks or ("forward" in vars(part) and not hasattr(part, "_hf_hook"))


def _hooks(part: Any) -> Iterator[Any]:
    yield from part._forward_hooks.values()
    yield from part._forward_pre_hooks.values()


def _only_notes(hook: Any) -> bool:
    """Whether it is one of another capture, or one that transformers leaves to note outputs."""
    module = str(getattr(hook, "__module__", ""))
    return module == CAPTURING or module.partition(".")[0] == "transformers"
