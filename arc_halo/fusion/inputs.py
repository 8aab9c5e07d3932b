"""The tensors that go into a merge, read part by part through windows of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

from arc_halo.errors import NotFiniteError
from arc_halo.fusion.blocks import BLOCK_ITEMS, Span, fused_parts, spans
from arc_halo.fusion.facts import Observer
from arc_halo.fusion.recipes import Compute
from arc_halo.tensors import dtypes
from arc_halo.types import Block, FuseContext, FusionStrategy, JsonObject, Part

if TYPE_CHECKING:
    from arc_halo.types import FloatArray

SMALLEST_WINDOW = 8 * BLOCK_ITEMS
"""Bytes; a block of float64 fits."""

LARGEST_WINDOW = 2**20
"""Bytes; what is larger is read no faster."""

PIECE_BYTES = 2**20
"""What is given out at once, unless a part is larger: less would take longer to write."""

KEPT_BYTES = 2**24
"""More than the parts of a merge take at a time."""


class RawTensor(Protocol):
    """The raw bytes of one tensor, wherever they are."""

    @property
    def dtype(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def alignment(self) -> int:
        """Spans that begin at its multiples are read best."""
        ...

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the tensor's raw bytes from `offset` on."""
        ...


class FloatParts(Protocol):
    """A tensor as floats, part after part."""

    def block(self, span: Span) -> FloatArray: ...
    def end(self) -> None: ...


class Input:
    """One model's tensor, as floats, part after part.

    What `is_reread` and fits into the window as a whole is kept there.
    """

    def __init__(
        self,
        model: str,
        tensor: str,
        source: RawTensor,
        window_bytes: int,
        compute: Compute = "F32",
        *,
        is_reread: bool = False,
    ) -> None:
        self._model = model
        self._tensor = tensor
        self._source = source
        self._dtype = dtypes.numpy_dtype(source.dtype)
        self._floats = "f8" if "F64" in (compute, source.dtype) else "f4"
        alignments = max(1, max(window_bytes, SMALLEST_WINDOW) // source.alignment)
        is_kept = is_reread and source.size_bytes <= window_bytes
        largest = max(1, LARGEST_WINDOW // source.alignment)
        most = alignments if is_kept else min(alignments, largest)
        self._window_bytes = most * source.alignment
        self._buffer = memoryview(b"")
        self._start = self._end = 0
        self._is_checked = False

    @property
    def item_bytes(self) -> int:
        return self._dtype.itemsize

    def block(self, span: Span) -> FloatArray:
        """That part in float32, or float64 for F64 and where it is asked for.

        Raises `NotFiniteError`.
        """
        import numpy as np

        size = self._dtype.itemsize
        values = np.frombuffer(self._take(span.start * size, span.count * size), self._dtype)
        floats: FloatArray = values.astype(self._floats).reshape(span.shape)
        if not self._is_checked and not np.isfinite(floats).all():
            raise NotFiniteError(
                f"{self._model}: {self._tensor!r} holds NaN or infinity",
                hint="repair that model, or leave it out: nothing can be made of such numbers",
            )
        floats.setflags(write=False)
        return floats

    def end(self) -> None:
        """All of it was read once: it need not be looked at for NaN again."""
        self._is_checked = True

    def _take(self, start: int, size: int) -> memoryview:
        if not self._start <= start <= start + size <= self._end:
            self._read(start, size)
        return self._buffer[start - self._start : start - self._start + size]

    def _read(self, start: int, size: int) -> None:
        alignment = self._source.alignment
        first = start // alignment * alignment
        end = min(max(first + self._window_bytes, start + size), self._source.size_bytes)
        if len(self._buffer) < end - first:
            self._buffer = memoryview(b"")  # gone before the new one is there
            self._buffer = memoryview(bytearray(end - first))
        self._source.read_into(first, self._buffer[: end - first])
        self._start, self._end = first, end


@cache
def keep_freed_memory() -> None:
    """Have the C library keep what parts leave behind for the next ones: asking anew takes longer.

    Of the largest block that it has unmapped, glibc concludes how much it is to keep: twice that.
    """
    import numpy as np

    np.empty(KEPT_BYTES // 2, np.uint8)


def scan_inputs(
    members: Sequence[FloatParts], base: FloatParts | None, shape: Sequence[int], part: Part
) -> Iterator[Block]:
    """The parts of a tensor, of all inputs together."""
    for span in spans(shape, part):
        yield Block(
            tuple(member.block(span) for member in members),
            None if base is None else base.block(span),
            span.start,
        )
    for each in (*members, *([base] if base else [])):
        each.end()


def fused_bytes(
    strategy: FusionStrategy,
    params: JsonObject,
    context: FuseContext,
    members: Sequence[FloatParts],
    base: FloatParts | None,
    dtype: str,
    observer: Observer | None = None,
) -> Iterator[memoryview]:
    """The raw bytes of a fused tensor, some parts at a time, rounded once to `dtype`.

    What is beyond a dtype's range becomes what its own rounding has for that. Raises `FusionError`.
    """
    import numpy as np

    def scan() -> Iterator[Block]:
        return scan_inputs(members, base, context.shape, strategy.part)

    keep_freed_memory()
    context = replace(context, dtype=dtype)
    target = dtypes.numpy_dtype(dtype)
    rest = math.prod(context.shape)
    piece, filled = np.empty(0, target), 0
    for part in fused_parts(strategy, params, context, scan, observer):
        if filled + part.size > piece.size:
            if filled:
                yield piece[:filled].view(np.uint8).data
            most = max(part.size, PIECE_BYTES // target.itemsize)
            piece, filled = np.empty(min(rest, most), target), 0
        with np.errstate(over="ignore", invalid="ignore"):
            piece[filled : filled + part.size] = part.reshape(-1)
        filled += part.size
        rest -= part.size
    if filled:
        yield piece[:filled].view(np.uint8).data
