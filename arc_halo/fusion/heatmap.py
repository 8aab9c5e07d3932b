"""A figure for each layer and kind of module, from the names of tensors: rows, columns, cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from arc_halo.fusion.conflicts import TensorConflict, weighted
from arc_halo.fusion.layers import is_before_layers, layered, stacks

ALL = "all"
"""The column of whole rows, and the row of whole columns."""

ENDINGS = ("weight", "bias")
SHORTER = (
    ("self_attention", "attn"), ("self_attn", "attn"), ("attention", "attn"),
    ("layernorm", "norm"), ("LayerNorm", "norm"), ("layer_norm", "norm"),
    ("feedforward", "ff"), ("feed_forward", "ff"),
)  # fmt: skip
USUAL_ORDER = ("attn", "mlp")
USUAL_PARTS = ("q", "query", "k", "key", "v", "value", "qkv", "o", "gate", "up", "down")

COLOURS = (
    "#005faf", "#5fafd7", "#afd7ff", "#d7ffff", "#eeeeee", "#ffd7af", "#ffaf87", "#d75f5f",
    "#af0000",
)  # fmt: skip
"""From agreeing to opposed, on a light ground; terminals of 256 colours have them all."""

Value = Callable[[TensorConflict], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """Rows from the first layer to the last, what stands before and after them, then all.

    A cell has the tensors that meet there. The first column has whole rows, the last row whole
    columns.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Sequence[TensorConflict]]

    def value(self, row: str, column: str, of: Value) -> float | None:
        """The mean of a cell, weighted by elements; None where nothing is, or is defined."""
        return weighted(self.cells.get((row, column), ()), of)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Shades of a figure, to both sides of what it is where changes are unrelated.

    `rising` says that more of it is more conflict.
    """

    middle: float
    reach: float
    rising: bool

    @property
    def low(self) -> float:
        return self.middle - self.reach

    @property
    def high(self) -> float:
        return self.middle + self.reach

    def shade(self, value: float) -> float:
        """From -1, agreeing, over 0, unrelated, to 1, opposed."""
        step = min(1.0, max(-1.0, (value - self.middle) / self.reach))
        return step if self.rising else -step

    def step(self, value: float) -> int:
        """The place of its colour."""
        return round((self.shade(value) + 1) / 2 * (len(COLOURS) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One figure of a heatmap, ready to be shown."""

    title: str
    heatmap: Heatmap
    of: Value
    scale: Scale
    form: str

    def text(self, value: float) -> str:
        return self.form.format(value)

    def value(self, row: str, column: str) -> float | None:
        return self.heatmap.value(row, column, self.of)


def panels(tensors: Sequence[TensorConflict]) -> tuple[Panel, Panel]:
    """The mean cosine and the sign conflict of all tensors."""
    heatmap = heatmap_of(tensors)
    return (
        Panel(
            title="mean cosine",
            heatmap=heatmap,
            of=_cosine,
            scale=_scale(heatmap, _cosine, 0.0, 0.2, rising=False),
            form="{:+z.2f}",
        ),
        Panel(
            title="sign conflict",
            heatmap=heatmap,
            of=_conflict,
            scale=_scale(heatmap, _conflict, 0.5, 0.1, rising=True),
            form="{:.0%}",
        ),
    )


def heatmap_of(tensors: Sequence[TensorConflict]) -> Heatmap:
    counts = stacks(each.name for each in tensors)
    cells: dict[tuple[str, str], list[TensorConflict]] = {}
    before, after, kinds = dict[str, None](), dict[str, None](), dict[str, None]()
    for each in tensors:
        found = layered(each.name)
        if found is None:
            row = shortened(each.name)
            (before if is_before_layers(each.name) else after)[row] = None
        else:
            row, kind = _layer_row(found.stack, found.index, counts), shortened(found.rest)
            kinds[kind] = None
            cells.setdefault((row, kind), []).append(each)
            cells.setdefault((ALL, kind), []).append(each)
        cells.setdefault((row, ALL), []).append(each)
        cells.setdefault((ALL, ALL), []).append(each)
    layers = [_layer_row(s, index, counts) for s, count in counts.items() for index in range(count)]
    last = sorted(after, key=lambda row: "head" in row)
    present = [row for row in (*before, *layers, *last) if (row, ALL) in cells]
    return Heatmap(rows=(*present, ALL), columns=(ALL, *_ordered(kinds)), cells=cells)


def shortened(name: str) -> str:
    """What kind of module a tensor is of: `self_attn.q_proj.weight` is `attn.q`.

    Numbers are left out, so that experts are one kind.
    """
    parts = [part for part in name.split(".") if not part.isdigit()] or [name]
    if len(parts) > 1 and parts[-1] in ENDINGS:
        parts.pop()
    if len(parts) > 1 and parts[0] == "model":
        parts.pop(0)
    text = ".".join(part.removesuffix("_proj") for part in parts)
    for long, short in SHORTER:
        text = text.replace(long, short)
    return text


def _layer_row(stack: str, index: int, counts: Mapping[str, int]) -> str:
    return str(index) if len(counts) == 1 else f"{stack}.{index}" if stack else str(index)


def _ordered(kinds: Iterable[str]) -> list[str]:
    """As a layer computes them, as far as names tell, norms last; others as they came."""

    def place(kind: str) -> tuple[bool, int, int]:
        parts = kind.split(".")
        return (
            parts[-1].endswith("norm"),
            _index(USUAL_ORDER, parts[0]),
            _index(USUAL_PARTS, parts[-1]),
        )

    return sorted(kinds, key=place)


def _index(known: Sequence[str], word: str) -> int:
    return known.index(word) if word in known else len(known)


def _cosine(tensor: TensorConflict) -> float | None:
    return tensor.mean_cosine


def _conflict(tensor: TensorConflict) -> float | None:
    return tensor.sign_conflict


def _scale(heatmap: Heatmap, of: Value, middle: float, least: float, *, rising: bool) -> Scale:
    """Reaches as far as the figures do, rounded up; not less, so that what is small looks small."""
    found = [heatmap.value(row, column, of) for row, column in heatmap.cells]
    far = max((abs(value - middle) for value in found if value is not None), default=0.0)
    reach = max(least, math.ceil(round(far * 10, 6)) / 10)
    return Scale(middle=middle, reach=reach, rising=rising)
