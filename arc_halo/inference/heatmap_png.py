"""A head's pattern as PNG, by matplotlib (extra `plot`)."""

from __future__ import annotations

import io
import warnings

import numpy as np

from arc_halo.errors import ArcHaloError
from arc_halo.inference.heatmap import COLOURS, Heatmap

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


def draw(found: Heatmap, title: str, note: str) -> bytes:
    """Queries down, keys across; the same pattern gives the same bytes."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

    side = 3 + min(9.0, 0.28 * max(found.values.shape))
    figure = Figure(figsize=(side + 1, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    shades = LinearSegmentedColormap.from_list("attention", COLOURS)
    drawn = axes.imshow(
        np.ma.masked_invalid(found.values),
        cmap=shades,
        norm=PowerNorm(0.5, vmin=0.0, vmax=found.most or 1.0),
        interpolation="nearest",
    )
    for labels, set_ticks, turn in (
        (found.queries, axes.set_yticks, 0),
        (found.keys, axes.set_xticks, 90),
    ):
        if len(labels) <= MOST_LABELS:
            set_ticks(range(len(labels)), [_as_written(label) for label in labels], rotation=turn)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    axes.set_title(_as_written(f"{title}\n{note}"), fontsize=10)
    figure.colorbar(drawn)
    written = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that its font does not have are boxes; nothing is to be done about it here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _as_written(text: str) -> str:
    """Without the formulas that matplotlib makes of a text."""
    return text.replace("$", "\\$")
