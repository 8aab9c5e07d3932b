"""The k largest of many numbers, found in a few passes and bounded memory.

Order is by magnitude, and of equal magnitudes the one that comes first is the larger: so the k
largest are always exactly k, whatever the parts they are found in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import FloatArray

    Mask = NDArray[np.bool_]

Passes = Callable[[], Iterator[Sequence["FloatArray"]]]
"""Gives the same sequences of numbers, part by part, each time it is called."""

DIGIT_BITS = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the largest end: those above `threshold`, and the first `ties` that equal it."""

    threshold: float
    ties: int

    def keeper(self) -> Keeper:
        return Keeper(self)


class Keeper:
    """Tells, part after part and in order, which elements are among the largest."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._ties_left = cut.ties

    def mask(self, values: FloatArray) -> Mask:
        magnitudes = np.abs(values)
        kept: Mask = magnitudes > self._cut.threshold
        if self._ties_left:
            places = np.flatnonzero(magnitudes == self._cut.threshold)[: self._ties_left]
            kept.reshape(-1)[places] = True
            self._ties_left -= len(places)
        return kept


def cut_at(threshold: float, ties: int) -> Cut:
    """A cut found elsewhere, for numbers that may be narrower than the threshold."""
    is_narrow = float(np.float32(threshold)) == threshold
    # A plain float would be rounded to what it is compared with.
    return Cut(threshold if is_narrow else np.float64(threshold), ties)


NOTHING = Cut(np.inf, 0)
EVERYTHING = Cut(-1.0, 0)


def cuts(passes: Passes, counts: Sequence[int], size: int) -> list[Cut]:
    """Of each sequence of `size` numbers the cut that keeps its `counts` largest.

    A radix search: each pass counts one digit of the magnitudes' bits, of those numbers whose
    higher digits are known to be the threshold's.
    """
    searches = [_Search(count) if 0 < count < size else None for count in counts]
    while any(search is not None and not search.is_done for search in searches):
        for part in passes():
            for search, values in zip(searches, part, strict=True):
                if search is not None:
                    search.count(values)
        for search in searches:
            if search is not None:
                search.descend()
    return [
        search.cut() if search else (EVERYTHING if count >= size else NOTHING)
        for search, count in zip(searches, counts, strict=True)
    ]


class _Search:
    def __init__(self, count: int) -> None:
        self._left = count
        self._prefix = 0
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        self._shift: int | None = None
        self._histogram = np.zeros(1 << DIGIT_BITS, np.int64)

    @property
    def is_done(self) -> bool:
        return self._shift is not None and self._shift < 0

    def count(self, values: FloatArray) -> None:
        if self._shift is None:
            self._dtype = values.dtype
            self._shift = 8 * values.dtype.itemsize - DIGIT_BITS
        bits = np.abs(values).reshape(-1).view(f"u{values.dtype.itemsize}")
        higher = self._shift + DIGIT_BITS
        if higher < 8 * values.dtype.itemsize:
            bits = np.compress(bits >> higher == self._prefix, bits) & ((1 << higher) - 1)
        digits = (bits >> self._shift).astype(np.intp)
        # Not bincount: its own histogram would be as large again, for however few digits.
        np.add.at(self._histogram, digits, 1)

    def descend(self) -> None:
        if self._shift is None or self._shift < 0:
            return
        from_top = np.cumsum(self._histogram[::-1])
        place = int(np.searchsorted(from_top, self._left))
        digit = (1 << DIGIT_BITS) - 1 - place
        self._left -= int(from_top[place - 1]) if place else 0
        self._prefix = self._prefix << DIGIT_BITS | digit
        self._shift -= DIGIT_BITS
        self._histogram[:] = 0

    def cut(self) -> Cut:
        size = self._dtype.itemsize
        threshold = np.array([self._prefix], f"u{size}").view(self._dtype)[0]
        return Cut(float(threshold), self._left)
