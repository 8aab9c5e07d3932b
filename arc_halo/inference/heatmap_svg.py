"""A head's pattern as SVG, for light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from arc_halo.inference.heatmap import COLOURS, DARK_COLOURS, Heatmap

SVG = "http://www.w3.org/2000/svg"
MOST_CELLS = 128
"""A side: beyond that a page grows slow, and nobody sees them."""

MOST_TITLES = 4096
"""Cells that say their number when they are pointed at."""

MARGIN, TOP, SIDE, SWATCH = 20, 72, 640, 22
CELL = 22
LETTER = 7.0
"""About the width of one."""

LONGEST = 16
"""Letters of a label that are shown."""

STYLE = """
  .page { fill: #ffffff }
  text { font: 11px ui-monospace, 'DejaVu Sans Mono', monospace; fill: #24292f }
  .title { font: 600 16px system-ui, 'DejaVu Sans', sans-serif }
  .note { font: 12px system-ui, 'DejaVu Sans', sans-serif; fill: #59636e }
  .row { text-anchor: end }
"""


def draw(found: Heatmap, title: str, note: str) -> str:
    """Queries down, keys across; the same pattern gives the same bytes."""
    rows, columns = found.values.shape
    cell = min(float(CELL), SIDE / max(rows, columns))
    has_labels = cell >= 9
    left = MARGIN + (_width(found.queries) if has_labels else 12)
    top = TOP + (_width(found.keys) if has_labels else 12)
    width = max(left + cell * columns, MARGIN + LETTER * max(len(note), 1.4 * len(title))) + MARGIN
    height = top + cell * rows + 56
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    parts = [
        f'<svg xmlns="{SVG}" {box} role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}{_colours()}</style>",
        '<rect class="page" width="100%" height="100%" rx="8"/>',
        f'<text class="title" x="{MARGIN}" y="32">{escape(title)}</text>',
        f'<text class="note" x="{MARGIN}" y="52">{escape(note)}</text>',
        *(_labels(found, left, top, cell) if has_labels else ()),
        *_cells(found, left, top, cell),
        *_legend(found, left, top + cell * rows + 16),
    ]
    return "\n".join([*parts, "</svg>\n"])


def _cells(found: Heatmap, left: float, top: float, cell: float) -> Iterator[str]:
    rows, columns = found.values.shape
    has_titles = rows * columns <= MOST_TITLES
    for query in range(rows):
        for key in range(columns):
            step = found.step(query, key)
            if step is None:
                continue
            place = f'x="{left + cell * key:.2f}" y="{top + cell * query:.2f}"'
            rect = f'<rect class="s{step}" {place} width="{cell:.2f}" height="{cell:.2f}"'
            if not has_titles:
                yield f"{rect}/>"
                continue
            told = f"{found.queries[query]} → {found.keys[key]}: {found.values[query, key]:.4f}"
            yield f"{rect}><title>{escape(told)}</title></rect>"


def _labels(found: Heatmap, left: float, top: float, cell: float) -> Iterator[str]:
    for place, label in enumerate(found.queries):
        y = top + cell * (place + 0.5) + 4
        yield f'<text class="row" x="{left - 6:.1f}" y="{y:.1f}">{escape(_short(label))}</text>'
    for place, label in enumerate(found.keys):
        x, y = left + cell * (place + 0.5) + 4, top - 6
        turned = f'transform="translate({x:.1f} {y:.1f}) rotate(-90)"'
        yield f"<text {turned}>{escape(_short(label))}</text>"


def _legend(found: Heatmap, x: float, y: float) -> Iterator[str]:
    for step in range(len(COLOURS)):
        place = f'x="{x + SWATCH * step:.1f}" y="{y:.1f}" width="{SWATCH}" height="12"'
        yield f'<rect class="s{step}" {place}/>'
    yield f'<text class="note" x="{x:.1f}" y="{y + 28:.1f}">0 to {found.most:.3g}</text>'


def _width(labels: tuple[str, ...]) -> float:
    return LETTER * max((len(_short(label)) for label in labels), default=0) + 10


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"


def _colours() -> str:
    light, dark = (
        " ".join(f".s{step} {{ fill: {colour} }}" for step, colour in enumerate(colours))
        for colours in (COLOURS, DARK_COLOURS)
    )
    return f"""  {light}
  @media (prefers-color-scheme: dark) {{
    .page {{ fill: #0d1117 }} text {{ fill: #e6edf3 }} .note {{ fill: #9198a1 }}
    {dark}
  }}
"""
