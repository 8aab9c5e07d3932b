"""Patterns as SVG, for light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from arc_halo.inference.heatmap import (
    COLOURS,
    DARK_COLOURS,
    DARK_LESS_TO_MORE,
    LESS_TO_MORE,
    Heatmap,
    columns_of,
)

SVG = "http://www.w3.org/2000/svg"
MOST_CELLS = 128
"""A side: beyond that a page grows slow, and nobody sees them."""

MOST_TITLES = 4096
"""Cells that say their number when they are pointed at."""

MARGIN, TOP, SIDE, SWATCH = 20, 72, 640, 22
PANEL_SIDE, PANEL_TOP, PANEL_GAP = 160, 20, 16
"""Of one of several."""

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


def draw(found: Sequence[Heatmap], title: str, note: str) -> str:
    """Queries down, keys across, one pattern or several; the same give the same bytes."""
    body, right, bottom = _one(found[0]) if len(found) == 1 else _several(found)
    width = max(right, MARGIN + LETTER * max(len(note), 1.4 * len(title))) + MARGIN
    box = f'viewBox="0 0 {width:.0f} {bottom + 56:.0f}"'
    parts = [
        f'<svg xmlns="{SVG}" {box} role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}{_colours(found[0])}</style>",
        '<rect class="page" width="100%" height="100%" rx="8"/>',
        f'<text class="title" x="{MARGIN}" y="32">{escape(title)}</text>',
        f'<text class="note" x="{MARGIN}" y="52">{escape(note)}</text>',
        *body,
        "</svg>\n",
    ]
    return "\n".join(parts)


def _one(found: Heatmap) -> tuple[list[str], float, float]:
    """A pattern with its tokens beside it, and where it ends to the right and below."""
    rows, columns = found.values.shape
    cell = min(float(CELL), SIDE / max(rows, columns))
    has_labels = cell >= 9
    left = MARGIN + (_width(found.queries) if has_labels else 12)
    top = TOP + (_width(found.keys) if has_labels else 12)
    bottom = top + cell * rows
    parts = [
        *(_labels(found, left, top, cell) if has_labels else ()),
        *_cells(found, left, top, cell, has_titles=rows * columns <= MOST_TITLES),
        *_legend(found, left, bottom + 16),
    ]
    return parts, left + cell * columns, bottom


def _several(found: Sequence[Heatmap]) -> tuple[list[str], float, float]:
    """Patterns beside one another, each below its name, and where they end."""
    across = columns_of(len(found))
    has_titles = sum(each.values.size for each in found) <= MOST_TITLES
    cell = PANEL_SIDE / max(found[0].values.shape)
    width, height = cell * found[0].values.shape[1], cell * found[0].values.shape[0]
    parts = []
    for place, each in enumerate(found):
        left = MARGIN + (width + PANEL_GAP) * (place % across)
        top = TOP + PANEL_TOP + (height + PANEL_TOP + PANEL_GAP) * (place // across)
        parts.append(f'<text x="{left:.1f}" y="{top - 6:.1f}">{escape(each.name)}</text>')
        parts += _cells(each, left, top, cell, has_titles=has_titles)
    bottom = TOP + (height + PANEL_TOP + PANEL_GAP) * -(-len(found) // across)
    return (
        [*parts, *_legend(found[0], MARGIN, bottom)],
        MARGIN + (width + PANEL_GAP) * across,
        bottom,
    )


def _cells(
    found: Heatmap, left: float, top: float, cell: float, *, has_titles: bool
) -> Iterator[str]:
    rows, columns = found.values.shape
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
    yield f'<text class="note" x="{x:.1f}" y="{y + 28:.1f}">{found.range}</text>'


def _width(labels: tuple[str, ...]) -> float:
    return LETTER * max((len(_short(label)) for label in labels), default=0) + 10


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"


def _colours(found: Heatmap) -> str:
    on_light, on_dark = (
        (LESS_TO_MORE, DARK_LESS_TO_MORE) if found.is_difference else (COLOURS, DARK_COLOURS)
    )
    light, dark = (
        " ".join(f".s{step} {{ fill: {colour} }}" for step, colour in enumerate(colours))
        for colours in (on_light, on_dark)
    )
    return f"""  {light}
  @media (prefers-color-scheme: dark) {{
    .page {{ fill: #0d1117 }} text {{ fill: #e6edf3 }} .note {{ fill: #9198a1 }}
    {dark}
  }}
"""
