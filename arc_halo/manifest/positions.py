"""Where a value stands in its file: found by a second reading, only when there is a problem."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

from yaml import (
    AliasEvent,
    CSafeLoader,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from arc_halo.config import SECRET_FORMS
from arc_halo.errors import Problem
from arc_halo.manifest.secrecy import SECRET_NAME, is_hidden, may_hold_secrets

if TYPE_CHECKING:
    from arc_halo.manifest.load import Source

Pointer = tuple[str | int, ...]

MAX_SNIPPET: Final = 400
"""Characters of a line that a snippet keeps; a place beyond them has no snippet."""

_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_COVERED = re.compile(r"[^\s\"']")
_NO_TEXT = re.compile(r"[-+]?\.?\d[\d.eE+-]*|true|false|null|~|")
_NOT_PRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_SECRETS = (
    re.compile(r"://[^/?#@\s]*:(?P<secret>\S*)@"),
    re.compile(r"password[\"']?\s*[:=]\s*(?P<secret>[^{\s].*)", re.IGNORECASE),
    re.compile(rf"(?<![A-Za-z]){SECRET_NAME}[\"']?\s*:\s*(?P<secret>[^{{\s].*)", re.IGNORECASE),
    *SECRET_FORMS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A stretch of one line. Line and column count from 1; `length` is at least 1."""

    line: int
    column: int
    length: int
    snippet: str | None


class Mark(Protocol):
    """A place as the YAML parser gives it: line and column count from 0."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


class Lines:
    """The lines of a text, cut where YAML cuts them."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = _LINE_BREAK.split(text)

    def line(self, number: int) -> str:
        """Return a line by its number, which counts from 1; empty beyond the last."""
        return self._lines[number - 1] if number <= len(self._lines) else ""

    def position(self, start: Mark, end: Mark) -> Position:
        """Return the stretch from `start` to `end`, or to the end of the line if that is sooner."""
        line = self.line(start.line + 1)
        stop = end.column if end.line == start.line else len(line.rstrip())
        length = max(1, stop - start.column)
        return Position(
            line=start.line + 1,
            column=start.column + 1,
            length=length,
            snippet=snippet_of(line, start.column + length),
        )

    def at(self, index: int) -> Position:
        """Return the position of the character that stands at `index` of the text."""
        before = _LINE_BREAK.split(self._text[:index])
        mark = _At(len(before) - 1, len(before[-1]))
        return self.position(mark, mark)

    def is_end(self, mark: Mark) -> bool:
        """Say whether nothing but blanks stands at and after `mark`."""
        rest = [self.line(mark.line + 1)[mark.column :], *self._lines[mark.line + 1 :]]
        return not any(line.strip() for line in rest)

    def text(self, start: Mark, end: Mark) -> str | None:
        """Return what stands between two marks of one line, None if they are on two."""
        return (
            self.line(start.line + 1)[start.column : end.column] if start.line == end.line else None
        )

    def find(self, text: str, start: Mark, end: Mark) -> Position:
        """Return the place of `text` within a scalar, or the scalar's own."""
        for number in range(start.line, end.line + 1):
            first = start.column if number == start.line else 0
            column = self.line(number + 1).find(text, first)
            if column >= 0:
                return self.position(_At(number, column), _At(number, column + len(text)))
        return self.position(start, end)


def locate(source: Source, pointer: Pointer, *, key: bool = False) -> Position:
    """Return the place of the value at `pointer`, or of its key.

    The nearest ancestor stands in for a value that the file does not have. What an overlay
    patched has its place there, see `home`.
    """
    source, pointer = home(source, pointer)
    lines, root, hidden = _map(source)
    node, name = root.find(pointer)
    if key and name is not None:
        node = name
    place = lines.position(node.start, node.end)
    return replace(place, snippet=hidden.cover(place.line, place.snippet))


def home(source: Source, pointer: Pointer) -> tuple[Source, Pointer]:
    """Return the file that the value at `pointer` was written in, an overlay it may be, and its
    pointer there."""
    if source.overlay is not None:
        for length in range(len(pointer), 0, -1):
            if (place := source.patched.get(pointer[:length])) is not None:
                return source.overlay, (*place, *pointer[length:])
    return source, pointer


def line_of(source: Source, pointer: Pointer) -> int:
    """Return the line of the value at `pointer`, of this file and no overlay."""
    return _map(source)[1].find(pointer)[0].start.line + 1


def written(source: Source, pointer: Pointer) -> str | None:
    """Return the value at `pointer` as the file has it, quotes included; None if on many lines."""
    source, pointer = home(source, pointer)
    lines, root, _ = _map(source)
    node, _ = root.find(pointer)
    return lines.text(node.start, node.end)


def problem(
    source: Source,
    pointer: Pointer,
    code: str,
    message: str,
    *,
    hint: str | None = None,
    key: bool = False,
) -> Problem:
    """Return a problem that stands at the value at `pointer`, or at its key."""
    source, pointer = home(source, pointer)
    place = locate(source, pointer, key=key)
    return problem_at(place, source.label, code, message, hint=hint)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Spare the collector many containers that are built at one time and all of them live."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def problem_at(
    position: Position, label: str, code: str, message: str, *, hint: str | None = None
) -> Problem:
    """Return the problem of `code` at a position of the file that messages call `label`."""
    return Problem(
        code=code,
        message=message,
        file=label,
        line=position.line,
        column=position.column,
        length=position.length,
        snippet=position.snippet,
        hint=hint,
    )


def snippet_of(line: str, needed: int) -> str | None:
    """Return a line fit for printing up to column `needed`: no control characters, no passwords."""
    if needed > MAX_SNIPPET and len(line) > MAX_SNIPPET:
        return None
    return redact(_NOT_PRINTABLE.sub("\ufffd", line[:MAX_SNIPPET]))


def redact(line: str) -> str:
    """Cover what looks like a password, character by character, so that columns stay true."""
    for pattern in _SECRETS:
        line = pattern.sub(_cover, line)
    return line


def _cover(match: re.Match[str]) -> str:
    start, end = match.span("secret")
    whole, offset = match[0], match.start()
    return whole[: start - offset] + "*" * (end - start) + whole[end - offset :]


@dataclass(frozen=True, slots=True)
class _At:
    line: int
    column: int


@dataclass(slots=True)
class _Node:
    """Where a node begins and ends; its children by key or index, each with its key's node."""

    start: Mark
    end: Mark
    children: dict[str | int, tuple[_Node | None, _Node]] = field(default_factory=dict)

    def find(self, pointer: Pointer) -> tuple[_Node, _Node | None]:
        """Return the deepest node along `pointer`, and the node of its key."""
        node, name = self, None
        for part in pointer:
            if part not in node.children:
                break
            name, node = node.children[part]
        return node, name


@lru_cache(maxsize=8)
def _map(source: Source) -> tuple[Lines, _Node, _Hidden]:
    """Read a file a second time; the last few are kept, for problems come in crowds."""
    with no_garbage_collection():
        lines, root = Lines(source.text), _read(source.text)
        return lines, root, _Hidden(lines, root)


class _Hidden:
    """The stretches of a file where secrets may stand, by line."""

    def __init__(self, lines: Lines, root: _Node) -> None:
        self._lines = lines
        self._stretches: dict[int, list[tuple[int, int]]] = {}
        self._seen: set[tuple[int, bool]] = set()
        self._find(root, ())

    def cover(self, number: int, snippet: str | None) -> str | None:
        """The snippet of a line, with all that may be secret covered."""
        if snippet is None:
            return None
        for start, end in self._stretches.get(number, ()):
            snippet = snippet[:start] + _COVERED.sub("*", snippet[start:end]) + snippet[end:]
        return snippet

    def _find(self, node: _Node, pointer: Pointer) -> None:
        for part, (_, child) in node.children.items():
            place = (*pointer, part)
            may_hide = may_hold_secrets(place)
            if not child.children:
                text = self._lines.text(child.start, child.end)
                if may_hide and (text is None or is_hidden(place, _bare(text))):
                    self._add(child)
                continue
            # What an alias repeats has its places once; a bomb of them is walked once.
            if (known := (id(child.children), may_hide)) not in self._seen:
                self._seen.add(known)
                self._find(child, place)

    def _add(self, node: _Node) -> None:
        for number in range(node.start.line, node.end.line + 1):
            line = self._lines.line(number + 1)
            start = node.start.column if number == node.start.line else 0
            end = node.end.column if number == node.end.line else len(line)
            self._stretches.setdefault(number + 1, []).append((start, end))


def _bare(text: str) -> object:
    """A scalar as it is written, without its quotes; None for a plain one that is no text."""
    if text[:1] in ("'", '"'):
        return text[1:-1]
    return None if _NO_TEXT.fullmatch(text) else text


def span(event: Event) -> tuple[Mark, Mark]:
    """Return where an event begins and ends."""
    start, end = event.start_mark, event.end_mark
    assert start is not None
    assert end is not None
    return start, end


def _read(text: str) -> _Node:
    """Read the text of a file that was loaded before, so that it is known to be YAML."""
    events: Iterator[Event] = iter(CSafeLoader(text).get_event, None)
    reader = _NodeReader(events)
    for event in events:
        if isinstance(event, NodeEvent):
            return reader.node(event)
    return _Node(_At(0, 0), _At(0, 0))


class _NodeReader:
    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._anchors: dict[str, _Node] = {}

    def node(self, event: Event) -> _Node:
        node = _Node(*span(event))
        if isinstance(event, MappingStartEvent):
            self._fill_mapping(node)
        elif isinstance(event, SequenceStartEvent):
            self._fill_sequence(node)
        if isinstance(event, NodeEvent) and event.anchor is not None:
            self._name(event, event.anchor, node)
        return node

    def _name(self, event: NodeEvent, anchor: str, node: _Node) -> None:
        if isinstance(event, AliasEvent):
            node.children = self._anchors.get(anchor, node).children
        else:
            self._anchors[anchor] = node

    def _fill_mapping(self, node: _Node) -> None:
        for event in self._events:
            if isinstance(event, MappingEndEvent):
                node.end = span(event)[1]
                return
            name, value = self.node(event), self.node(next(self._events))
            if isinstance(event, ScalarEvent):
                node.children.setdefault(event.value, (name, value))

    def _fill_sequence(self, node: _Node) -> None:
        for event in self._events:
            if isinstance(event, SequenceEndEvent):
                node.end = span(event)[1]
                return
            node.children[len(node.children)] = None, self.node(event)
