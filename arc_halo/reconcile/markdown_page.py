"""A page of Markdown made of sections, which is cut by section where it must be short."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arc_halo.sizes import format_count

NO_ENVIRONMENT = "-"
"""Stands in a marker for no environment; none can have this name."""

LONGER = 20
"""Bytes by which the longest line on what is cut goes beyond the shortest."""

CLIPPED = 1000
"""Characters of a text that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a list, and lines below it that are given up before it is."""

    line: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A titled list. The higher its rank, the earlier it is cut; it may be folded away."""

    title: str
    rows: Sequence[Row]
    rank: int
    is_folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Sections between a summary and the same again; `whole` says where nothing is cut."""

    marker: str | None = None
    title: str
    summary: str
    remarks: Sequence[str] = ()
    sections: Sequence[Section] = ()
    whole: str = "Without `--max-bytes` nothing is."


def marker(project: str, environment: str | None) -> str:
    """A line that nobody sees, by which a comment is found again."""
    return f"<!-- arc-halo:{project}:{environment or NO_ENVIRONMENT} -->"


def code(text: str) -> str:
    """`text` as code, whatever is in it."""
    text = _one_line(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def prose(text: str) -> str:
    """`text` as text: no HTML, no links, and nobody is notified."""
    text = _one_line(text).replace("<", "&lt;").replace("[", "\\[")
    return re.sub(r"(?<![\w`])@(?=\w)", "@<!-- -->", text)


def page_text(page: Page, max_bytes: int | None = None) -> str:
    """The page. What does not fit into `max_bytes` is counted in its place and at the top."""
    whole = _text(page, [(section, _everything(section)) for section in page.sections])
    if max_bytes is None or _size(whole) <= max_bytes:
        return whole
    shown = _fitting(page, max_bytes)
    left = sum(len(section.rows) - rows for section, (rows, _) in shown)
    return _text(page, shown, _notice(page, max_bytes, left))


Shown = tuple[int, int]
"""How many of a section's rows are shown, and how many of those with their details."""


def _fitting(page: Page, max_bytes: int) -> list[tuple[Section, Shown]]:
    """As much of each section as there is room for, the most important first."""
    empty = [(section, (0, 0)) for section in page.sections]
    total = sum(len(section.rows) for section in page.sections)
    room = max_bytes - _size(_text(page, empty, _notice(page, max_bytes, total)))
    room -= LONGER * len(page.sections)
    shown: dict[int, Shown] = {}
    for index, section in sorted(enumerate(page.sections), key=lambda pair: pair[1].rank):
        shown[index], room = _prefix(section, room)
    return [(section, shown[index]) for index, section in enumerate(page.sections)]


def _prefix(section: Section, room: int) -> tuple[Shown, int]:
    """How much of a section fits, and the room that is left."""
    rows = 0
    for row in section.rows:
        if (size := _size(row.line) + 1) > room:
            return (rows, 0), room
        rows, room = rows + 1, room - size
    detailed = 0
    for row in section.rows:
        if (size := sum(_size(line) + 1 for line in row.details)) > room:
            break
        detailed, room = detailed + 1, room - size
    return (rows, detailed), room


def _everything(section: Section) -> Shown:
    return len(section.rows), len(section.rows)


def _text(page: Page, shown: Sequence[tuple[Section, Shown]], notice: str | None = None) -> str:
    lines = [page.marker] if page.marker else []
    lines += [f"### {page.title}", "", f"**{page.summary}**", ""]
    for remark in [notice, *page.remarks]:
        lines += [remark, ""] if remark else []
    for section, amount in shown:
        lines += [*_section_lines(section, amount), ""]
    return "\n".join([*lines, page.summary]) + "\n"


def _section_lines(section: Section, shown: Shown) -> Iterator[str]:
    count, detailed = shown
    yield f"#### {section.title}"
    yield ""
    if section.is_folded:
        yield f"<details><summary>{format_count(len(section.rows), 'line')}</summary>"
        yield ""
    for index, row in enumerate(section.rows[:count]):
        yield row.line
        if index < detailed:
            yield from row.details
    if left := len(section.rows) - count:
        yield f"- … and {left:,} more"
    elif cut := sum(1 for row in section.rows[detailed:] if row.details):
        yield f"- … {cut:,} without details"
    if section.is_folded:
        yield ""
        yield "</details>"


def _notice(page: Page, max_bytes: int, left: int) -> str:
    total = sum(len(section.rows) for section in page.sections)
    what = f"{left:,} of {total:,} lines are" if left else "some details are"
    return f"_Cut to {max_bytes:,} bytes: {what} left out._ {page.whole}"


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= CLIPPED else text[: CLIPPED - 1] + "…"
