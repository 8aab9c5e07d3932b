"""NaN and infinities in what is to be fused: found, once one was met, wherever else they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from arc_halo.errors import NotFiniteError
from arc_halo.fusion.blocks import spans
from arc_halo.fusion.computing import OpenSource
from arc_halo.fusion.inputs import Input
from arc_halo.fusion.tensor_recipes import TensorRecipe

SHOWN = 10
SECONDS = 20.0
"""How long others are looked for."""


def every_not_finite(
    found: NotFiniteError,
    tensors: Sequence[TensorRecipe],
    open_sources: Callable[[TensorRecipe], OpenSource],
    window_bytes: int,
) -> NotFiniteError:
    """The error that was met, or one that lists the first ten tensors of which it is true."""
    end = time.monotonic() + SECONDS
    listed: list[str] = []
    is_all = True
    for told in _not_finite(tensors, open_sources, window_bytes, end):
        if told is None or len(listed) == SHOWN:
            is_all = False
            break
        listed.append(told)
    if len(listed) < 2:
        return found
    lines = "".join(f"\n  {each}" for each in listed)
    more = "" if is_all else "\n  and maybe more"
    return NotFiniteError(f"these hold NaN or infinity:{lines}{more}", hint=found.hint)


def _not_finite(
    tensors: Sequence[TensorRecipe],
    open_sources: Callable[[TensorRecipe], OpenSource],
    window_bytes: int,
    end: float,
) -> Iterator[str | None]:
    """Each tensor of an input that is not finite, once; None when time is up."""
    seen: set[tuple[str, str]] = set()
    for recipe in tensors:
        if recipe.strategy is None:
            continue
        open_source = open_sources(recipe)
        for source in recipe.all_sources:
            if time.monotonic() > end:
                yield None
                return
            place = (source.model, source.tensor)
            if place in seen:
                continue
            seen.add(place)
            raw = open_source(source)
            tensor = Input(source.model, source.tensor, raw, window_bytes)
            try:
                for span in spans((raw.size_bytes // tensor.item_bytes,), "elements"):
                    tensor.block(span)
            except NotFiniteError:
                yield f"{source.model}: {source.tensor!r}"
