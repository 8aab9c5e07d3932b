"""Patterns as cells to be drawn: queries down, keys across, in so many shades.

What is longer than there is room for is taken together, of each square the most: a single place
that gets much is seen however long the sequence. Several are drawn beside one another, in shades
of the same scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.inference.patterns import visible

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLOURS = ("#eeeeee", "#d7ffff", "#afd7ff", "#87afd7", "#5f87d7", "#005faf", "#00005f")
"""From nothing to the most, on a light ground; terminals of 256 colours have them all."""

DARK_COLOURS = ("#21262d", "#24405a", "#1f5a8a", "#2f7fbf", "#62aeea", "#a5d3f7", "#e6f3ff")

LESS_TO_MORE = ("#005faf", "#5fafd7", "#afd7ff", "#eeeeee", "#ffd7af", "#ff875f", "#af0000")
"""Of differences, with nothing in the middle: blue is less, red is more."""

DARK_LESS_TO_MORE = (
    "#62aeea", "#2f7fbf", "#24405a", "#21262d", "#5c3a21", "#c2622e", "#ffb58a",
)  # fmt: skip

SIGNS = {" ": "␣", "\n": "⏎", "\r": "⏎", "\t": "⇥"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """Cells to be drawn; NaN where a query sees no key. `size` tokens of a side share a cell.

    Shades go from 0 to `most`, or, of a difference, from `-most` to it.
    """

    name: str
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    values: NDArray[np.float64]
    size: int
    most: float
    is_difference: bool = False

    def step(self, query: int, key: int) -> int | None:
        """The place of a cell's colour, None for one that has none.

        Shades go by the root, so that what is small is told from nothing.
        """
        value = float(self.values[query, key])
        if not math.isfinite(value):
            return None
        share = value / self.most if self.most > 0 else 0.0
        if not self.is_difference:
            return round(math.sqrt(min(1.0, max(0.0, share))) * (len(COLOURS) - 1))
        middle = len(LESS_TO_MORE) // 2
        return middle + round(math.copysign(math.sqrt(min(1.0, abs(share))), share) * middle)

    @property
    def range(self) -> str:
        """What the shades go from and to."""
        return f"{0 - self.most if self.is_difference else 0:.3g} to {self.most:.3g}"


def heatmap(
    matrix: NDArray[Any],
    tokens: Sequence[str],
    *,
    is_causal: bool,
    most_cells: int,
    is_difference: bool = False,
    name: str = "",
) -> Heatmap:
    """The cells of a pattern, at most so many a side; its last token is the last query and key."""
    values = matrix.astype(np.float64)
    queries, keys = values.shape
    if is_causal:
        values[~visible(queries, keys)] = np.nan
    size = max(1, -(-max(queries, keys) // max(1, most_cells)))
    finite = np.abs(values[np.isfinite(values)])
    return Heatmap(
        name=name,
        queries=_labels(tokens, queries, size),
        keys=_labels(tokens, keys, size),
        values=_pooled(values, size),
        size=size,
        most=float(finite.max()) if finite.size else 0.0,
        is_difference=is_difference,
    )


def of_one_scale(found: Sequence[Heatmap]) -> list[Heatmap]:
    """Patterns whose shades mean the same."""
    most = max(each.most for each in found)
    return [replace(each, most=most) for each in found]


def columns_of(count: int) -> int:
    """How many of so many patterns stand beside one another in a picture."""
    return math.ceil(math.sqrt(count))


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
    """Of each square what is furthest from 0; NaN where it has nothing but that."""
    if size == 1:
        return values
    queries, keys = (-(-side // size) * size for side in values.shape)
    padded = np.full((queries, keys), np.nan)
    padded[: values.shape[0], : values.shape[1]] = values
    squares = padded.reshape(queries // size, size, keys // size, size).swapaxes(1, 2)
    flat = squares.reshape(*squares.shape[:2], size * size)
    furthest = np.where(np.isnan(flat), -1.0, np.abs(flat)).argmax(axis=-1, keepdims=True)
    found: NDArray[np.float64] = np.take_along_axis(flat, furthest, axis=-1)[..., 0]
    return found
