"""Computing one tensor of a merge, wherever its inputs are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from arc_halo.fusion.facts import Observer
from arc_halo.fusion.inputs import Input, RawTensor, fused_bytes
from arc_halo.fusion.tensor_recipes import TensorRecipe, TensorSource
from arc_halo.types import FuseContext

OpenSource = Callable[[TensorSource], RawTensor]
"""Gives the raw bytes of an input's tensor."""


def fused_pieces(
    recipe: TensorRecipe,
    open_source: OpenSource,
    memory_bytes: int,
    observer: Observer | None = None,
) -> Iterator[memoryview]:
    """The raw bytes of the fused tensor, part by part, rounded once to its dtype.

    Windows into the inputs take `memory_bytes` together. Raises `FusionError`, and what reading
    the inputs raises.
    """
    assert recipe.strategy is not None
    window_bytes = memory_bytes // len(recipe.sources)
    inputs = [
        Input(each.model, each.tensor, open_source(each), window_bytes, recipe.compute)
        for each in recipe.sources
    ]
    count = len(recipe.members)
    context = FuseContext(
        tensor=recipe.name, weights=recipe.weights, shape=recipe.shape, roots=recipe.roots
    )
    yield from fused_bytes(
        recipe.strategy,
        recipe.params,
        context,
        inputs[:count],
        inputs[count] if recipe.base else None,
        recipe.dtype,
        observer,
    )
