"""Draws docs/images/perplexity.svg from results.json: a dot for each model on each text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
CHART = HERE.parents[1] / "docs" / "images" / "perplexity.svg"
TEXTS = {"scripture": "Scripture", "python": "Python source", "general": "General text"}
TRAINED = ("base", "scripture", "python")

WIDTH, TOP, ROW, GAP = 900, 112, 25, 14
LEFT, RIGHT, BETWEEN, MARGIN = 168, 20, 20, 48  # a margin has room for a figure
SVG = "http://www.w3.org/2000/svg"
TITLE = "Two fine-tunes of one base, and ten fusions of the two"
SCALE = "perplexity per byte; one logarithmic scale, so equal distances are equal ratios"
STYLE = """
  .page { fill: #ffffff } .panel { fill: #f6f7f9 } .fused { fill: #0969da }
  text { font: 13px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #24292f }
  .title { font-size: 16px } .title, .text { font-weight: 600 } .better { font-weight: 700 }
  .note, .tick { fill: #59636e; font-size: 12px }
  .tick { text-anchor: middle } .model, .better { text-anchor: end }
  .grid { stroke: #d9dee4 } .level { stroke: #59636e; stroke-dasharray: 4 3 }
  .trained { fill: #ffffff; stroke: #59636e; stroke-width: 2 }
  .figure { paint-order: stroke; stroke: #f6f7f9; stroke-width: 4px }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .panel { fill: #161b22 } .fused { fill: #58a6ff }
    text { fill: #e6edf3 } .note, .tick { fill: #9198a1 } .figure { stroke: #161b22 }
    .grid { stroke: #2b323b } .trained { fill: #0d1117 } .trained, .level { stroke: #9198a1 }
  }
"""

Perplexities = dict[str, dict[str, float]]
Axis = Callable[[float], float]


def read() -> Perplexities:
    """Perplexity by model and text: what was trained, then the fusions, the best of them first."""
    losses = json.loads((HERE / "results.json").read_text())["losses"]
    fused = sorted(losses.keys() - TRAINED, key=lambda model: sum(losses[model].values()))
    models = (*TRAINED, *fused)
    return {model: {text: math.exp(losses[model][text]) for text in TEXTS} for model in models}


def draw(models: Perplexities) -> str:
    """The chart, as SVG."""
    height = row_y(len(models)) + 48
    parts = [
        f'<svg xmlns="{SVG}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{TITLE}">',
        f'<style>{STYLE}</style>\n<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>',
        *heading(),
        *(text(LEFT - 8, row_y(row) + 4, model, "model") for row, model in enumerate(models)),
        *panels(models),
        text(LEFT, row_y(len(models)) + 34, SCALE, "note"),
    ]
    return "\n".join([*parts, "</svg>\n"])


def heading() -> Iterator[str]:
    yield text(20, 32, TITLE, "title")
    yield text(20, 54, "Further left is better; best fusion first.", "note")
    yield dot("trained", 302, 50) + text(314, 54, "trained", "note")
    yield dot("fused", 386, 50) + text(398, 54, "fused", "note")
    yield vertical("level", 456, 42, 58)
    yield text(464, 54, "the base; figures better than it are bold", "note")


def panels(models: Perplexities) -> Iterator[str]:
    """One for each text, as wide as its models are apart."""
    ranges = {on: [f(m[on] for m in models.values()) for f in (min, max)] for on in TEXTS}
    free = WIDTH - LEFT - RIGHT - 2 * BETWEEN - 6 * MARGIN
    unit = free / sum(math.log(high / low) for low, high in ranges.values())
    left = float(LEFT)
    for on, (low, high) in ranges.items():
        width = unit * math.log(high / low) + 2 * MARGIN
        origin = left + MARGIN - unit * math.log(low)
        yield from panel(models, on, left, width, lambda v, o=origin: o + unit * math.log(v))
        left += width + BETWEEN


def panel(models: Perplexities, on: str, left: float, width: float, x: Axis) -> Iterator[str]:
    top, bottom = TOP - 16, row_y(len(models)) - 8
    place = f'x="{left:.1f}" y="{top}" width="{width:.1f}" height="{bottom - top}"'
    yield f'<rect class="panel" {place} rx="4"/>'
    yield text(left, top - 8, TEXTS[on], "text")
    values = [perplexities[on] for perplexities in models.values()]
    for half in range(math.ceil(2 * min(values)), math.floor(2 * max(values)) + 1):
        yield vertical("grid", x(half / 2), top, bottom)
        yield text(x(half / 2), bottom + 16, f"{half / 2:g}", "tick")
    yield vertical("level", x(base := models["base"][on]), top, bottom)
    for row, (model, value) in enumerate(zip(models, values, strict=True)):
        yield dot("trained" if model in TRAINED else "fused", x(value), row_y(row))
        # The figure stands on the side away from the base, so that none is on its line.
        side, kind = (-10, "figure better") if value < base else (10, "figure")
        yield text(x(value) + side, row_y(row) + 4, f"{value:.2f}", kind)


def row_y(row: int) -> int:
    """The middle of a row; the fusions stand a little apart from what they are made of."""
    return TOP + row * ROW + (GAP if row >= len(TRAINED) else 0)


def vertical(kind: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'


def dot(kind: str, x: float, y: float) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y}" r="5"/>'


def text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{words}</text>'


if __name__ == "__main__":
    CHART.write_text(draw(read()))
