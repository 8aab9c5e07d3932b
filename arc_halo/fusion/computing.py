"""Computing one tensor of a merge, wherever its inputs are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from arc_halo.errors import FusionError
from arc_halo.fusion.aligning import AlignedTensor
from arc_halo.fusion.blas import one_blas_thread
from arc_halo.fusion.blocks import Span, told
from arc_halo.fusion.facts import Observer
from arc_halo.fusion.inputs import FloatParts, Input, RawTensor, fused_bytes, scan_inputs
from arc_halo.fusion.recipes import Compute, FusionRecipe
from arc_halo.fusion.tensor_recipes import TensorRecipe, TensorSource
from arc_halo.fusion.updates import UpdatedInput, factors
from arc_halo.tensors import dtypes
from arc_halo.types import Block, FuseContext, SurveyTensor

if TYPE_CHECKING:
    from arc_halo.types import FloatArray

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
    members, base = _inputs(recipe, open_source, memory_bytes)
    context = FuseContext(
        tensor=recipe.name,
        weights=recipe.weights,
        shape=recipe.shape,
        roots=recipe.roots,
        surveyed=recipe.surveyed,
    )
    is_exact = recipe.strategy.numerics == "exact"
    with nullcontext() if is_exact else one_blas_thread():
        yield from fused_bytes(
            recipe.strategy, recipe.params, context, members, base, recipe.dtype, observer
        )


def surveyed(
    recipe: FusionRecipe,
    tensors: Sequence[TensorRecipe],
    open_sources: Callable[[TensorRecipe], OpenSource],
    memory_bytes: int,
) -> list[TensorRecipe]:
    """The tensors with what the strategy's survey of all of them has found, if it makes one.

    Raises `FusionError` for a survey that fails or finds what is not JSON, and for params of one
    that are not the same for all tensors.
    """
    fused = sorted((t for t in tensors if t.strategy is not None), key=lambda t: t.name)
    if recipe.strategy.survey is None or not fused:
        return list(tensors)

    def scan(tensor: TensorRecipe) -> Iterator[Block]:
        members, base = _inputs(tensor, open_sources(tensor), memory_bytes)
        return scan_inputs(members, base, tensor.shape, recipe.strategy.part)

    listed = [
        SurveyTensor(
            tensor.name,
            math.prod(tensor.shape),
            "F64" in (recipe.compute, *(source.dtype for source in tensor.sources)),
            partial(scan, tensor),
        )
        for tensor in fused
    ]
    with told(recipe.strategy, "all tensors"):
        found = recipe.strategy.survey(listed, **fused[0].params)
        # As it comes back from the database: the same wherever it was made.
        found = json.loads(json.dumps(found, allow_nan=False))
    if found is not None and any(tensor.params != fused[0].params for tensor in fused):
        raise FusionError(
            f"the strategy {recipe.strategy.name!r} looks at all tensors together, and its params "
            "are not the same for all of them",
            hint="take them out of `tensors` and `slices`, or look at each tensor by itself",
        )
    return [replace(tensor, surveyed=(found or {}).get(tensor.name)) for tensor in tensors]


def _inputs(
    recipe: TensorRecipe, open_source: OpenSource, memory_bytes: int
) -> tuple[list[FloatParts], FloatParts | None]:
    window_bytes = memory_bytes // len(recipe.sources)
    inputs = [_input(each, open_source, window_bytes, recipe) for each in recipe.sources]
    count = len(recipe.members)
    return inputs[:count], inputs[count] if recipe.base else None


def _input(
    source: TensorSource, open_source: OpenSource, window_bytes: int, recipe: TensorRecipe
) -> FloatParts:
    assert recipe.strategy is not None
    tensor = Input(
        source.model,
        source.tensor,
        raw_tensor(source, open_source, recipe),
        window_bytes,
        recipe.compute,
        is_reread=recipe.strategy.measure is not None,
    )
    if not source.updates:
        return tensor
    pairs = []
    for update in source.updates:
        # Of the first the rank is that of its rows, of the second that of its columns.
        a = _whole(update.a, open_source(update.a)).reshape(update.rank, -1)
        b = _whole(update.b, open_source(update.b)).reshape(-1, update.rank)
        pairs.append(factors(update, a, b))
    return UpdatedInput(tensor, pairs, recipe.shape[-1])


def raw_tensor(source: TensorSource, open_source: OpenSource, recipe: TensorRecipe) -> RawTensor:
    """The raw bytes of an input: those of its tensor, or of the rows that stand in its place."""
    if source.rows is None:
        return open_source(source)
    return AlignedTensor(
        source.rows,
        [open_source(each) for each in source.read],
        math.prod(recipe.shape[1:]),
        "F64" if _is_wide(recipe.compute, source) else "F32",
    )


def _is_wide(compute: Compute, source: TensorSource) -> bool:
    return "F64" in (compute, *(each.dtype for each in source.read))


def _whole(source: TensorSource, raw: RawTensor) -> FloatArray:
    """A small tensor in float64, as a vector."""
    count = raw.size_bytes // dtypes.numpy_dtype(raw.dtype).itemsize
    whole = Input(source.model, source.tensor, raw, raw.size_bytes, "F64")
    return whole.block(Span(0, (count,), count))
