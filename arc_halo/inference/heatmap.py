"""A head's pattern as cells to be drawn: queries down, keys across, in so many shades.

What is longer than there is room for is taken together, of each square the most: a single place
that gets much is seen however long the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLOURS = ("#eeeeee", "#d7ffff", "#afd7ff", "#87afd7", "#5f87d7", "#005faf", "#00005f")
"""From nothing to the most, on a light ground; terminals of 256 colours have them all."""

DARK_COLOURS = ("#21262d", "#24405a", "#1f5a8a", "#2f7fbf", "#62aeea", "#a5d3f7", "#e6f3ff")

SIGNS = {" ": "␣", "\n": "⏎", "\r": "⏎", "\t": "⇥"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """Cells to be drawn; NaN where a query sees no key. `size` tokens of a side share a cell."""

    queries: tuple[str, ...]
    keys: tuple[str, ...]
    values: NDArray[np.float64]
    size: int
    most: float

    def step(self, query: int, key: int) -> int | None:
        """The place of a cell's colour, None for one that has none.

        Shades go by the root, so that what is small is told from nothing.
        """
        value = float(self.values[query, key])
        if not math.isfinite(value):
            return None
        share = value / self.most if self.most > 0 else 0.0
        return round(math.sqrt(min(1.0, max(0.0, share))) * (len(COLOURS) - 1))


def heatmap(
    matrix: NDArray[Any], tokens: Sequence[str], *, is_causal: bool, most_cells: int
) -> Heatmap:
    """The cells of a pattern, at most so many a side; its last token is the last query and key."""
    values = matrix.astype(np.float64)
    queries, keys = values.shape
    if is_causal:
        values[~np.tri(queries, keys, keys - queries, dtype=bool)] = np.nan
    size = max(1, -(-max(queries, keys) // max(1, most_cells)))
    finite = values[np.isfinite(values)]
    return Heatmap(
        queries=_labels(tokens, queries, size),
        keys=_labels(tokens, keys, size),
        values=_pooled(values, size),
        size=size,
        most=float(finite.max()) if finite.size else 0.0,
    )


def shown(text: str) -> str:
    """A token's text with signs for what is not seen."""
    return "".join(
        SIGNS.get(letter, letter if letter.isprintable() else f"\\u{ord(letter):04x}")
        for letter in text
    )


def _labels(tokens: Sequence[str], count: int, size: int) -> tuple[str, ...]:
    """The tokens, or where several share a cell, their places: `8-15`."""
    named = [str(place) for place in range(count - len(tokens))] + [*map(shown, tokens[-count:])]
    if size == 1:
        return tuple(named)
    starts = range(0, count, size)
    return tuple(f"{start}-{min(start + size, count) - 1}" for start in starts)


def _pooled(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The most of each square; NaN where it has nothing but that."""
    if size == 1:
        return values
    queries, keys = (-(-side // size) * size for side in values.shape)
    padded = np.full((queries, keys), -np.inf)
    padded[: values.shape[0], : values.shape[1]] = np.where(np.isnan(values), -np.inf, values)
    most = padded.reshape(queries // size, size, keys // size, size).max(axis=(1, 3))
    found: NDArray[np.float64] = np.where(np.isneginf(most), np.nan, most)
    return found
