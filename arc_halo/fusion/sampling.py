"""A few places of a tensor, read so that only the chunks which hold them are touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from arc_halo.errors import FusionError
from arc_halo.fusion.blocks import Span
from arc_halo.fusion.inputs import RawTensor
from arc_halo.fusion.tensor_recipes import TensorSource
from arc_halo.tensors import dtypes

if TYPE_CHECKING:
    from arc_halo.types import FloatArray

SAMPLE_ITEMS = 65536
"""Elements looked at of each tensor, unless somebody says otherwise."""

PLACES = 4
PLACE_ITEMS = 16384
"""A larger sample has more places, not larger ones: memory does not depend on it."""


def places(size: int, sample: int) -> Iterator[Span]:
    """The places of a tensor of that size, in order: evenly spread, the same every time.

    At most `sample` elements together; all of a tensor that has no more than that.
    """
    if size <= sample:
        for start in range(0, size, PLACE_ITEMS):
            yield _place(start, min(PLACE_ITEMS, size - start))
        return
    items = min(PLACE_ITEMS, max(1, sample // PLACES))
    count, room = sample // items, size // items
    for place in range(count):
        # The middle of its share. Multiples of `items` lie within one chunk.
        yield _place((2 * place + 1) * room // (2 * count) * items, items)


def _place(start: int, count: int) -> Span:
    return Span(start, (count,), count)


class SampledTensor:
    """A tensor in float64, read place after place in whole chunks; no byte is read twice."""

    def __init__(self, source: TensorSource, raw: RawTensor) -> None:
        self._source = source
        self._raw = raw
        self._dtype = dtypes.numpy_dtype(raw.dtype)
        self._units: dict[int, memoryview] = {}

    def block(self, span: Span) -> FloatArray:
        """That place. The next one must not begin before it.

        Raises `FusionError` for NaN and infinities.
        """
        import numpy as np

        size = self._dtype.itemsize
        raw = self._take(span.start * size, (span.start + span.count) * size)
        floats = np.frombuffer(raw, self._dtype).astype(np.float64)
        if not np.isfinite(floats).all():
            raise FusionError(
                f"{self._source.model}: {self._source.tensor!r} holds NaN or infinity",
                hint="repair that model, or leave it out: nothing can be made of such numbers",
            )
        return floats

    def whole(self) -> FloatArray:
        """All of a small tensor."""
        return self.block(_place(0, self._raw.size_bytes // self._dtype.itemsize))

    def end(self) -> None:
        """Nothing is looked at twice."""

    def _take(self, start: int, end: int) -> bytes:
        unit_bytes = self._raw.alignment
        wanted = range(start // unit_bytes, (end - 1) // unit_bytes + 1)
        kept = {unit: self._units[unit] for unit in wanted if unit in self._units}
        self._units = kept | self._read(range(wanted.start + len(kept), wanted.stop))
        first = wanted.start * unit_bytes
        return b"".join(self._units.values())[start - first : end - first]

    def _read(self, units: range) -> dict[int, memoryview]:
        if not units:
            return {}
        unit_bytes = self._raw.alignment
        offset = units.start * unit_bytes
        raw = bytearray(min(units.stop * unit_bytes, self._raw.size_bytes) - offset)
        self._raw.read_into(offset, memoryview(raw))
        pieces = (memoryview(raw)[at : at + unit_bytes] for at in range(0, len(raw), unit_bytes))
        return dict(zip(units, pieces, strict=True))
