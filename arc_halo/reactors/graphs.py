"""The shape of a reactor as a picture: members, what they do for each other, and the result."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from xml.sax.saxutils import escape

from arc_halo.manifest.documents import InteractionSpec
from arc_halo.types import JsonObject

TIP = (
    '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
    'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="#555"/></marker></defs>'
)
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 200, 52, 110, 26, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    name: str
    role: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a reactor what its picture shows. `produces` is the model that a merge makes."""

    name: str
    type: str
    strategy: str
    members: tuple[Node, ...]
    edges: tuple[InteractionSpec, ...]
    base: str | None
    produces: str | None

    @property
    def title(self) -> str:
        return f"{self.type}: {self.strategy}"

    @property
    def result(self) -> str:
        return self.produces or "answer"


def as_facts(shape: Shape) -> JsonObject:
    return {
        "reactor": shape.name,
        "type": shape.type,
        "strategy": shape.strategy,
        "members": [
            {"model": each.name, "role": each.role, "weight": each.weight} for each in shape.members
        ],
        "interactions": [edge.as_json() for edge in shape.edges],
        "base": shape.base,
        "produces": shape.produces,
    }


def as_mermaid(shape: Shape) -> str:
    """A Mermaid flowchart, from the members to the result."""
    ids = {each.name: f"m{number}" for number, each in enumerate(shape.members)}
    lines = [
        "flowchart LR",
        *(f'    {ids[m.name]}["{_quoted(m.name)}<br/>{_note(m)}"]' for m in shape.members),
        f'    fuse{{{{"{_quoted(shape.title)}"}}}}',
        f'    result(["{_quoted(shape.result)}"])',
        *(f"    {ids[e.source]} -. {e.kind} {e.weight:g} .-> {ids[e.target]}" for e in shape.edges),
    ]
    if shape.base is not None:
        lines += [f'    base["{_quoted(shape.base)}<br/>base"]', "    base --> fuse"]
    lines += [f"    {ids[each.name]} --> fuse" for each in _fused(shape)]
    lines.append("    fuse --> result")
    return "\n".join(lines)


def as_svg(shape: Shape) -> str:
    """The same as a picture of its own: members by the order in which they are asked."""
    columns = _columns(shape)
    places = dict(_places(columns))
    width = MARGIN * 2 + (len(columns) + 2) * BOX_WIDTH + (len(columns) + 1) * GAP_X
    height = MARGIN * 2 + max(len(each) for each in columns) * (BOX_HEIGHT + GAP_Y) - GAP_Y
    fuse = (_left(len(columns)), (height - BOX_HEIGHT) / 2)
    result = (_left(len(columns) + 1), (height - BOX_HEIGHT) / 2)
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
        TIP,
        f"<title>{escape(shape.name)}</title>",
    ]
    parts += [_line(places[each.name], fuse) for each in _fused(shape)]
    parts.append(_line(fuse, result))
    for edge in shape.edges:
        label = f"{edge.kind} {edge.weight:g}"
        parts.append(_line(places[edge.source], places[edge.target], label))
    for each in shape.members:
        parts.append(_box(places[each.name], each.name, _note(each)))
    parts.append(_box(fuse, shape.type, shape.strategy, fill="#e8eefc"))
    parts.append(_box(result, shape.result, "", fill="#e6f4e6"))
    return "\n".join([*parts, "</svg>", ""])


def _fused(shape: Shape) -> list[Node]:
    """The members whose answers are fused in the end; of a merge all."""
    if shape.type == "merge":
        return list(shape.members)
    hierarchical = shape.type == "hierarchical"
    gone = {e.source for e in shape.edges if hierarchical and e.kind in ("feeds_into", "augments")}
    return [each for each in shape.members if each.role != "validator" and each.name not in gone]


def _columns(shape: Shape) -> list[list[str]]:
    """The members by who waits for whom."""
    waits: dict[str, set[str]] = {each.name: set() for each in shape.members}
    for edge in shape.edges:
        waits[edge.second].add(edge.first)
    sorter = TopologicalSorter(waits)
    try:
        sorter.prepare()
    except CycleError:  # which only a hierarchy may not have
        return [[each.name for each in shape.members]]
    columns: list[list[str]] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=list(waits).index)
        columns.append(ready)
        sorter.done(*ready)
    return columns


def _places(columns: list[list[str]]) -> Iterator[tuple[str, tuple[float, float]]]:
    tallest = max(len(each) for each in columns)
    for number, names in enumerate(columns):
        top = MARGIN + (tallest - len(names)) * (BOX_HEIGHT + GAP_Y) / 2
        for place, name in enumerate(names):
            yield name, (_left(number), top + place * (BOX_HEIGHT + GAP_Y))


def _left(column: int) -> float:
    return MARGIN + column * (BOX_WIDTH + GAP_X)


def _box(at: tuple[float, float], first: str, second: str, fill: str = "#f6f6f6") -> str:
    x, y = at
    middle = x + BOX_WIDTH / 2
    lines = [(first, 22 if second else 31, "#111"), (second, 40, "#555")]
    texts = "".join(
        f'<text x="{middle:g}" y="{y + down:g}" text-anchor="middle" fill="{color}">'
        f"{escape(text)}</text>"
        for text, down, color in lines
        if text
    )
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
        f'fill="{fill}" stroke="#888"/>{texts}'
    )


def _line(start: tuple[float, float], end: tuple[float, float], label: str = "") -> str:
    """From box to box: between columns from side to side, within one from below to above."""
    (x1, y1), (x2, y2) = start, end
    if x1 == x2:
        down = y2 > y1
        x1, x2 = x1 + BOX_WIDTH * 0.5, x2 + BOX_WIDTH * 0.5
        y1, y2 = (y1 + BOX_HEIGHT, y2) if down else (y1, y2 + BOX_HEIGHT)
    else:
        right = x2 > x1
        x1, x2 = (x1 + BOX_WIDTH, x2) if right else (x1, x2 + BOX_WIDTH)
        y1, y2 = y1 + BOX_HEIGHT / 2, y2 + BOX_HEIGHT / 2
    dashes = ' stroke-dasharray="5 4"' if label else ""
    text = (
        f'<text x="{(x1 + x2) / 2:g}" y="{(y1 + y2) / 2 - 5:g}" text-anchor="middle" '
        f'fill="#555" font-size="11">{escape(label)}</text>'
        if label
        else ""
    )
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="#555"{dashes} '
        f'marker-end="url(#tip)"/>{text}'
    )


def _note(node: Node) -> str:
    return f"{node.role}, weight {node.weight:g}"


def _quoted(text: str) -> str:
    """Text inside of a Mermaid label."""
    return re.sub(r"[\"<>&#]", lambda found: f"#{ord(found[0])};", text)
