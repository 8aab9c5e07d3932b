"""Tensors cut into the parts that strategies work on, the same for every memory and machine."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from arc_halo.errors import ArcHaloError, FusionError
from arc_halo.fusion.facts import Observer
from arc_halo.types import Block, FuseContext, FusionStrategy, Part, Scan

if TYPE_CHECKING:
    from arc_halo.types import FloatArray

BLOCK_ITEMS = 32768
"""Elements of a part, about; part of the numerics, since reductions add up part by part."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a tensor: its first flat index, its shape, and how many elements that is."""

    start: int
    shape: tuple[int, ...]
    count: int


def spans(shape: Sequence[int], part: Part) -> Iterator[Span]:
    """The parts of a tensor of that shape, in order. Only whole tensors may be empty."""
    size = math.prod(shape)
    if part == "tensor":
        yield Span(0, tuple(shape), size)
    elif part == "elements":
        for start in range(0, size, BLOCK_ITEMS):
            count = min(BLOCK_ITEMS, size - start)
            yield Span(start, (count,), count)
    elif size:
        columns = shape[-1] if shape else 1
        step = max(1, BLOCK_ITEMS // columns)
        for row in range(0, size // columns, step):
            rows = min(step, size // columns - row)
            yield Span(row * columns, (rows, columns), rows * columns)


def scan_arrays(
    tensors: Sequence[FloatArray], base: FloatArray | None, shape: Sequence[int], part: Part
) -> Iterator[Block]:
    """The parts of arrays that are in memory as wholes."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    flat_base = None if base is None else base.reshape(-1)
    for span in spans(shape, part):
        place = slice(span.start, span.start + span.count)
        yield Block(
            tuple(each[place].reshape(span.shape) for each in flat),
            None if flat_base is None else flat_base[place].reshape(span.shape),
            span.start,
        )


def fused_parts(
    strategy: FusionStrategy,
    params: Mapping[str, Any],
    context: FuseContext,
    scan: Scan,
    observer: Observer | None = None,
) -> Iterator[FloatArray]:
    """The fused parts of a tensor in order, each of the shape of its block.

    An `observer` is told each of them, with the block it was made of.
    Raises `FusionError` for a strategy that fails or returns what is no such part.
    """
    import numpy as np

    assert strategy.fuse_weights is not None
    with np.errstate(over="ignore", invalid="ignore"):
        if strategy.measure is not None:
            with told(strategy, repr(context.tensor)):
                measured = strategy.measure(scan, context, **params)
            context = replace(context, measured=measured)
        for block in scan():
            part = context.at(block)
            with told(strategy, repr(context.tensor)):
                fused = np.asarray(strategy.fuse_weights(list(block.tensors), part, **params))
            _check(strategy, context, fused, block)
            if observer is not None:
                observer.see(block, fused, context)
            yield fused


def fuse_arrays(
    strategy: FusionStrategy,
    tensors: Sequence[FloatArray],
    context: FuseContext,
    params: Mapping[str, Any],
) -> FloatArray:
    """The fused tensor of arrays in memory: what the engine comes to, in one call."""
    import numpy as np

    shape = tensors[0].shape
    context = replace(context, shape=shape)

    def scan() -> Iterator[Block]:
        return scan_arrays(tensors, context.base, shape, strategy.part)

    parts = [part.reshape(-1) for part in fused_parts(strategy, params, context, scan)]
    if not parts:
        return np.empty(shape, tensors[0].dtype)
    return np.concatenate(parts).reshape(shape)


@contextmanager
def told(strategy: FusionStrategy, tensor: str) -> Iterator[None]:
    """Give what a strategy raises the names of the strategy, the tensor and the line."""
    try:
        yield
    except ArcHaloError:
        raise
    except Exception as exc:
        place = traceback.extract_tb(exc.__traceback__)[-1]
        raise FusionError(
            f"the strategy {strategy.name!r} failed on {tensor}: {exc!r} "
            f"({place.filename}:{place.lineno})"
        ) from exc


def _check(strategy: FusionStrategy, context: FuseContext, fused: FloatArray, block: Block) -> None:
    from arc_halo.tensors import dtypes

    shape = block.tensors[0].shape
    if fused.shape != shape:
        raise FusionError(
            f"the strategy {strategy.name!r} made {list(fused.shape)} of {context.tensor!r}, "
            f"whose {'shape' if strategy.part == 'tensor' else 'part'} is {list(shape)}"
        )
    # The floats of ml_dtypes are of numpy's kind "V", as structures are.
    if fused.dtype.kind not in "fiu" and not dtypes.is_float(fused.dtype):
        raise FusionError(
            f"the strategy {strategy.name!r} made {fused.dtype} of {context.tensor!r}, "
            "not real numbers"
        )
