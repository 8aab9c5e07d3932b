"""Patterns as PNG, by matplotlib (extra `plot`)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from arc_halo.errors import ArcHaloError
from arc_halo.inference.heatmap import COLOURS, LESS_TO_MORE, Heatmap, columns_of

MOST_CELLS = 1024
"""A side."""

MOST_LABELS = 64


def check_can_draw() -> None:
    """Raise where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as exc:
        raise ArcHaloError(
            "matplotlib is not installed",
            hint="pip install 'arc-halo[plot]', or draw it as SVG",
            code="AH030",
        ) from exc


def draw(found: Sequence[Heatmap], title: str, note: str) -> bytes:
    """Queries down, keys across, one pattern or several; the same give the same bytes."""
    from matplotlib.figure import Figure

    columns = columns_of(len(found))
    lines = -(-len(found) // columns)
    side = 3 + min(9.0, 0.28 * max(found[0].values.shape)) if len(found) == 1 else 2.5
    figure = Figure(figsize=(side * columns + 1, side * lines), dpi=120, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    shades, norm = _shades(found[0])
    for axes, each in zip(grid, found, strict=False):
        axes.imshow(
            np.ma.masked_invalid(each.values), cmap=shades, norm=norm, interpolation="nearest"
        )
        axes.set_title(_as_written(each.name), fontsize=9)
        (_with_labels if len(found) == 1 else _without_labels)(axes, each)
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    figure.suptitle(_as_written(f"{title}\n{note}"), fontsize=10)
    figure.colorbar(grid[0].images[0], ax=grid)
    written = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that its font does not have are boxes; nothing is to be done about it here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _shades(found: Heatmap) -> tuple[Any, Any]:
    """Colours, and what they go by: the root, so that what is small is told from nothing."""
    from matplotlib.colors import FuncNorm, LinearSegmentedColormap, PowerNorm

    most = found.most or 1.0
    if not found.is_difference:
        colours = LinearSegmentedColormap.from_list("attention", COLOURS)
        return colours, PowerNorm(0.5, vmin=0.0, vmax=most)
    by_root = (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * np.square(x))
    colours = LinearSegmentedColormap.from_list("difference", LESS_TO_MORE)
    return colours, FuncNorm(by_root, vmin=-most, vmax=most)


def _with_labels(axes: Any, found: Heatmap) -> None:
    for labels, set_ticks, turn in (
        (found.queries, axes.set_yticks, 0),
        (found.keys, axes.set_xticks, 90),
    ):
        if len(labels) <= MOST_LABELS:
            set_ticks(range(len(labels)), [_as_written(label) for label in labels], rotation=turn)
    axes.set_xlabel("key")
    axes.set_ylabel("query")


def _without_labels(axes: Any, found: Heatmap) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def _as_written(text: str) -> str:
    """Without the formulas that matplotlib makes of a text."""
    return text.replace("$", "\\$")
