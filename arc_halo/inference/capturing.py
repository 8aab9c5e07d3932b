"""Hooks on a torch module: what its parts gave, for each input that it was given.

An *input* is what one pass was given, or, in generation, what several passes were that went on
from one another by one cache: its tokens are then all that were fed, and what a part gave at each
of them is put together. What that makes wrong is refused: beams that are exchanged, caches that
were filled before, or cut.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.errors import InvalidInputError
from arc_halo.inference.given_arguments import (
    CACHES,
    given_arguments,
    kept_logits,
    length_of,
    size_of,
)
from arc_halo.inference.inputs import IDS, MASK, POSITIONS, joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXCHANGES = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")
"""What a cache does to the sequences of a batch."""

Keep = Callable[[str, Any, "SeenInput"], "NDArray[Any] | None"]
"""What to keep of what a part gave, which it may change afterwards; None for nothing."""


@dataclass(slots=True, kw_only=True, eq=False)
class SeenInput:
    """What went through a module, and what its parts gave in each pass."""

    parts: dict[str, NDArray[Any]]
    passes: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    cache: Any = None
    size: tuple[int, int] | None = None
    """[batch, tokens], where it was tokens, or vectors in their places."""

    spans: list[range] = field(default_factory=list)
    """The places of the tokens of each pass."""

    kept_logits: int | None = None
    """Of how many tokens alone logits were computed, where that was asked for."""

    def given(self) -> dict[str, NDArray[Any]]:
        """What the model was given, by name, all passes together."""
        return dict(self.parts)

    def outputs(self, name: str) -> list[NDArray[Any]]:
        """What a part gave, pass by pass."""
        return [each[name] for each in self.passes if name in each]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for each in self.passes for name in each))


class Watch:
    """Watches a module and some of its parts while it is in a `with`."""

    def __init__(self, module: Any, parts: Mapping[str, Any], keep: Keep) -> None:
        self.inputs: list[SeenInput] = []
        self._module, self._parts, self._keep = module, parts, keep
        self._signature = inspect.signature(module.forward)
        self._open: SeenInput | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Watch:
        module = self._module
        self.inputs, self._open = [], None
        with ExitStack() as stack:
            begin = module.register_forward_pre_hook(self._begin, with_kwargs=True)
            stack.callback(begin.remove)
            for name, part in self._parts.items():
                stack.callback(part.register_forward_hook(self._noting(name)).remove)
            # Last: the module may be one of its own parts, named by the empty text.
            stack.callback(module.register_forward_hook(self._end, with_kwargs=True).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()
        self._forget_failed()
        for each in self.inputs:
            each.cache = None

    def check_seen(self) -> None:
        """Raise `InvalidInputError` where nothing went through the module."""
        if self.inputs:
            return
        raise InvalidInputError(
            "nothing went through the model",
            hint="call the module itself within the `with`: not a part of it, nor one around it; "
            "a PeftModel generates by the one within, `model.get_base_model()`",
        )

    def check_gave(self) -> None:
        """Raise `InvalidInputError` where no part gave anything."""
        if any(each.names for each in self.inputs):
            return
        names = list(self._parts)
        told = ", ".join(map(repr, names[:4])) + (", …" if names[4:] else "")
        raise InvalidInputError(
            f"nothing was captured: {told} gave no tensor",
            hint="a list of modules is never called, its modules are: "
            f'"{names[0] + "." if names[0] else ""}*"',
        )

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forget_failed()
        given, cache = given_arguments(self._signature, args, kwargs)
        size, done = size_of(given), length_of(cache)
        if done:
            self._open = _going_on(self.inputs, cache, done, given, size)
        else:
            self._open = SeenInput(parts=given, size=size, cache=cache)
            self.inputs.append(self._open)
            self._guard(cache)
        self._open.kept_logits = kept_logits(kwargs)
        self._open.passes.append({})
        self._open.spans.append(range(done, done + size[1] if size else done))

    def _end(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen, self._open = self._open, None
        if seen is not None and seen.cache is None:
            seen.cache = _cache_of(output)
            self._guard(seen.cache)

    def _forget_failed(self) -> None:
        """Leave out what went through a pass that did not come to its end."""
        self.inputs = [each for each in self.inputs if each is not self._open]
        self._open = None

    def _noting(self, name: str) -> Callable[[Any, Any, Any], None]:
        def note(module: Any, args: Any, output: Any) -> None:
            if self._open is None:
                return
            found = self._keep(name, output, self._open)
            if found is not None:
                gave = self._open.passes[-1]
                times = sum(each.partition("#")[0] == name for each in gave)
                gave[f"{name}#{times + 1}" if times else name] = found

        return note

    def _guard(self, cache: Any) -> None:
        """Have the cache refuse to exchange sequences, as beams do, while this watches."""
        for name in EXCHANGES:
            if hasattr(cache, name) and name not in vars(cache):
                setattr(cache, name, _no_exchange)
                self._stack.callback(_unguard, cache, name)


def first_tensor(output: Any) -> Any:
    """The tensor that a module gave, or the first of several; None where there is none."""
    if hasattr(output, "detach"):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return next((each for each in output if hasattr(each, "detach")), None)
    return None


def _going_on(
    inputs: list[SeenInput],
    cache: Any,
    done: int,
    given: dict[str, NDArray[Any]],
    size: tuple[int, int] | None,
) -> SeenInput:
    """The input that a pass goes on with, what it was given added to it."""
    seen = next((each for each in reversed(inputs) if each.cache is cache), None)
    if seen is None:
        raise InvalidInputError(
            f"the pass goes on from a cache of {done} tokens, which are not known here",
            hint="begin to capture before the cache is filled, or run without one",
        )
    if seen.size is None or size is None or IDS not in given or IDS not in seen.parts:
        raise InvalidInputError("only token ids can be gone on with", hint="capture without cache")
    if seen.size[1] != done:
        raise InvalidInputError(
            f"the cache has {done} tokens, where {seen.size[1]} went through the model",
            hint="a cache that was cut, as by assisted generation, cannot be captured with",
        )
    extra = given.keys() - {IDS, MASK, POSITIONS}
    if extra:
        raise InvalidInputError(
            f"the pass goes on with {', '.join(sorted(extra))}, not with tokens"
        )
    total = (size[0], done + size[1])
    positions = [
        part if part is not None else _counted(count)
        for part, count in (
            (seen.parts.get(POSITIONS), (0, done)),
            (given.get(POSITIONS), (done, size[1])),
        )
    ]
    wide = [np.broadcast_to(part, (size[0], part.shape[-1])) for part in positions]
    seen.parts[IDS] = joined([seen.parts[IDS], given[IDS]])
    seen.parts[POSITIONS] = joined(wide)
    if MASK in given:
        seen.parts[MASK] = given[MASK]
    elif MASK in seen.parts:
        raise InvalidInputError("the mask of the first tokens was left out in a later pass")
    seen.size = total
    return seen


def _counted(count: tuple[int, int]) -> NDArray[np.int64]:
    return np.arange(count[0], count[0] + count[1], dtype=np.int64)[None]


def _cache_of(output: Any) -> Any:
    for name in CACHES:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if hasattr(found, "get_seq_length"):
            return found
    return None


def _no_exchange(*args: object, **kwargs: object) -> None:
    raise InvalidInputError(
        "sequences of the batch are exchanged, as by beam search: what was captured of each cannot "
        "be put together",
        hint="generate with num_beams=1 while you capture",
    )


def _unguard(cache: Any, name: str) -> None:
    with suppress(AttributeError):
        delattr(cache, name)
