"""The heatmaps of an inspection as one SVG, for light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from arc_halo.fusion.conflicts import Inspection
from arc_halo.fusion.heatmap import ALL, COLOURS, Panel, panels

SVG = "http://www.w3.org/2000/svg"
DARK_COLOURS = (
    "#62aeea", "#2f7fbf", "#1f5a8a", "#24405a", "#2d333b", "#553230", "#8a3b33", "#c04a3d",
    "#ee7a66",
)  # fmt: skip
STRONG = {"light": (0, 7, 8), "dark": (1, 2, 3, 4, 5, 6, 7)}
"""Steps with light letters on them."""

MARGIN, TOP, CELL, ROW, SWATCH, GAP = 20, 76, 56, 24, 22, 6
TALL = 16
"""Panels of more rows stand side by side."""

LETTER = 7.0
"""About the width of one."""

STYLE = """
  .page { fill: #ffffff } .swatch, .cell { stroke: #ffffff }
  text { font: 12px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #24292f }
  .title { font-size: 16px; font-weight: 600 } .panel { font-size: 14px; font-weight: 600 }
  .note, .column { fill: #59636e } .row { text-anchor: end }
  .column, .value { text-anchor: middle } .value { font-size: 11px }
"""


def draw(found: Inspection, title: str, base: str | None) -> str:
    """One panel for the mean cosine, one for the sign conflict."""
    both = panels(found.tensors)
    width, height = _size(both[0])
    is_beside = len(both[0].heatmap.rows) > TALL
    right, down = (width + MARGIN, 0) if is_beside else (0, height + MARGIN)
    name = f"Where {title} are at odds" if "," in title else f"Conflicts of {title}"
    of = f"what each model changed in {base}" if base else "the models themselves"
    note = f"Of {of}. Unrelated changes have a cosine of 0, and differ in half of their signs."
    whole = (max(width + right, LETTER * len(note)) + 2 * MARGIN, TOP + height + down + MARGIN)
    parts = [
        f'<svg xmlns="{SVG}" {_box(*whole)} role="img" aria-label="{escape(name)}">',
        f"<style>{STYLE}{_colours()}</style>",
        '<rect class="page" width="100%" height="100%" rx="8"/>',
        _text(MARGIN, 32, name, "title"),
        _text(MARGIN, 54, note, "note"),
        *_panel(both[0], MARGIN, TOP),
        *_panel(both[1], MARGIN + right, TOP + down),
    ]
    return "\n".join([*parts, "</svg>\n"])


def _box(width: float, height: float) -> str:
    return f'viewBox="0 0 {width:.0f} {height:.0f}"'


def _size(panel: Panel) -> tuple[float, float]:
    rows, columns = panel.heatmap.rows, panel.heatmap.columns
    width = _label_width(panel) + CELL * len(columns) + GAP
    return width, _header_height(panel) + GAP + ROW * len(rows) + 48


def _label_width(panel: Panel) -> float:
    return LETTER * max(map(len, panel.heatmap.rows)) + 12


def _header_height(panel: Panel) -> float:
    return 26 + 14 * max(len(_words(column)) for column in panel.heatmap.columns)


def _panel(panel: Panel, left: float, top: float) -> Iterator[str]:
    start, first = left + _label_width(panel), top + _header_height(panel)
    yield _text(left, top + 14, panel.title.capitalize(), "panel")
    for place, column in enumerate(panel.heatmap.columns):
        words = _words(column)
        for line, word in enumerate(words):
            y = first - 6 - 14 * (len(words) - 1 - line)
            yield _text(start + CELL * (place + 0.5) + (GAP if place else 0), y, word, "column")
    for line, row in enumerate(panel.heatmap.rows):
        y = first + ROW * line + (GAP if row == ALL else 0)
        yield _text(start - 8, y + 16, row, "row")
        for place, column in enumerate(panel.heatmap.columns):
            yield from _cell(panel, row, column, start + CELL * place + (GAP if place else 0), y)
    yield from _legend(panel, start, first + GAP + ROW * len(panel.heatmap.rows) + 14)


def _cell(panel: Panel, row: str, column: str, x: float, y: float) -> Iterator[str]:
    value = panel.value(row, column)
    if value is None:
        return
    step = panel.scale.step(value)
    told = f"{row}, {column}: {value:.4f}"
    yield f"<g><title>{escape(told)}</title>"
    yield f'<rect class="cell s{step}" x="{x:.1f}" y="{y:.1f}" width="{CELL}" height="{ROW}"/>'
    yield _text(x + CELL / 2, y + 16, panel.text(value), f"value t{step}") + "</g>"


def _legend(panel: Panel, x: float, y: float) -> Iterator[str]:
    """Opposed on the right, whichever way the figure rises."""
    scale = panel.scale
    agreeing, opposed = (scale.low, scale.high) if scale.rising else (scale.high, scale.low)
    first = f"{panel.text(agreeing)} agreeing"
    yield _text(x, y + 11, first, "note")
    x += LETTER * len(first) + 8
    for step in range(len(COLOURS)):
        place = f'x="{x + SWATCH * step:.1f}" y="{y:.1f}" width="{SWATCH}" height="14"'
        yield f'<rect class="swatch s{step}" {place}/>'
    end = x + SWATCH * len(COLOURS)
    yield _text((x + end) / 2, y + 28, f"{panel.text(scale.middle)} unrelated", "column")
    yield _text(end + 8, y + 11, f"{panel.text(opposed)} opposed", "note")


def _words(column: str) -> list[str]:
    """They stand one under another, so that cells are narrow."""
    return column.replace("_", ".").split(".")


def _colours() -> str:
    light = _rules(COLOURS, STRONG["light"], ink="#24292f")
    dark = _rules(DARK_COLOURS, STRONG["dark"], ink="#0d1117")
    return f"""{light}
  @media (prefers-color-scheme: dark) {{
    .page {{ fill: #0d1117 }} .swatch, .cell {{ stroke: #0d1117 }}
    text {{ fill: #e6edf3 }} .note, .column {{ fill: #9198a1 }}
  {dark}
  }}
"""


def _rules(colours: tuple[str, ...], strong: tuple[int, ...], *, ink: str) -> str:
    fills = " ".join(f".s{step} {{ fill: {colour} }}" for step, colour in enumerate(colours))
    inks = " ".join(
        f".t{step} {{ fill: {'#ffffff' if step in strong else ink} }}"
        for step in range(len(colours))
    )
    return f"  {fills}\n  {inks}"


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
