"""One YAML text to plain values, straight from the parser's events; problems with their places.

Nothing is built that a manifest may not hold, and limits are checked while reading, so that
hostile input is answered quickly. Aliases give copies: no two values share a container.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from yaml import (
    AliasEvent,
    CollectionStartEvent,
    CSafeLoader,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    MarkedYAMLError,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
    YAMLError,
)

from arc_halo.errors import Problem
from arc_halo.manifest.positions import span
from arc_halo.manifest.report import (
    CORE_TAG,
    MAX_DEPTH,
    NEST_LESS,
    TOO_DEEP,
    Report,
    StopReading,
    shown,
    with_notice,
)
from arc_halo.manifest.scalars import ScalarReader

MAX_NODES: Final = 1_000_000
"""Events of one file; the copies that its aliases ask for may be as many again."""

_CHARACTERS_A_NODE = 64
"""A copied text counts as one node for this many characters, so that it cannot multiply."""


def parse(
    text: str, *, label: str, env: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the mapping that `text` holds, empty for an empty text, and every problem in it.

    With `env`, variables in values are expanded. The mapping is worth something only where
    there are no problems. A byte order mark must be gone from `text`.
    """
    report = Report(text, label)
    data: dict[str, Any] = {}
    with suppress(StopReading):
        data = _read(text, report, env)
    return data, with_notice(report.problems, len(report.problems))


def _read(text: str, report: Report, env: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        return _Reader(text, report, ScalarReader(report, env)).document()
    except MarkedYAMLError as error:
        report.add_syntax_error(error)
    except YAMLError:
        report.add_unreadable_character()
    return {}


class _Reader:
    """Builds the values of one document. `_mapping` and `_sequence` are the hot loops."""

    def __init__(self, text: str, report: Report, scalars: ScalarReader) -> None:
        self._parser = CSafeLoader(text)
        self._events: Iterator[Event] = islice(iter(self._parser.get_event, None), MAX_NODES)
        self._report = report
        self._scalars = scalars
        self._keys: dict[str, str] = {}
        self._aliases = _Aliases(report)

    def document(self) -> dict[str, Any]:
        data: dict[str, Any] = {}
        documents = 0
        for event in self._events:
            if isinstance(event, StreamEndEvent):
                return data
            if isinstance(event, NodeEvent):
                data = self._top(event)
            elif isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    message = "a second document begins here"
                    self._report.stop(event, "AH010", message, "give it a file of its own")
        raise self._limit_reached()

    def _top(self, event: NodeEvent) -> dict[str, Any]:
        value = self._value(event, 0)
        if isinstance(value, dict):
            return value
        if value is not None:
            message = "the file is not a mapping of fields"
            self._report.add(event, "AH004", message, "begin it with a field, like `models:`")
        return {}

    def _value(self, event: Event, depth: int) -> Any:
        if isinstance(event, ScalarEvent):
            value = self._scalars.value(event)
            if event.anchor is not None:
                self._aliases.close(event.anchor, value)
            return value
        if isinstance(event, AliasEvent):
            return self._aliases.copy(event)
        assert isinstance(event, CollectionStartEvent)
        return self._collection(event, depth + 1)

    def _collection(self, event: CollectionStartEvent, depth: int) -> Any:
        if depth > MAX_DEPTH:
            self._report.stop(event, "AH009", TOO_DEEP, NEST_LESS)
        is_mapping = isinstance(event, MappingStartEvent)
        if event.tag is not None and event.tag != CORE_TAG + ("map" if is_mapping else "seq"):
            self._report.refuse_tag(event, event.tag)
        self._aliases.open(event.anchor)
        value = self._mapping(depth) if is_mapping else self._sequence(depth)
        self._aliases.close(event.anchor, value)
        return value

    def _mapping(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        names: list[Event] = []
        for event in self._events:
            if type(event) is MappingEndEvent:
                return values
            key = self._key(event, depth)
            value = self._value(self._next(), depth)
            if key is None:
                continue
            if key in values:
                self._refuse_duplicate(event, key, names[list(values).index(key)])
            else:
                values[key] = value
                names.append(event)
        raise self._limit_reached()

    def _sequence(self, depth: int) -> list[Any]:
        values: list[Any] = []
        for event in self._events:
            if type(event) is SequenceEndEvent:
                return values
            values.append(self._value(event, depth))
        raise self._limit_reached()

    def _next(self) -> Event:
        for event in self._events:
            return event
        raise self._limit_reached()

    def _key(self, event: Event, depth: int) -> str | None:
        """Return the key, None where it is refused. Equal keys are one object in memory."""
        if not isinstance(event, ScalarEvent):
            self._report.add(event, "AH010", "a key must be a text", "write the text out")
            self._value(event, depth)
            return None
        known = self._keys.get(event.value)
        if known is not None and event.anchor is None and event.tag is None:
            return known
        return self._new_key(event)

    def _new_key(self, event: ScalarEvent) -> str | None:
        key = self._scalars.literal(event)
        if event.anchor is not None:
            self._aliases.close(event.anchor, key)
        if not isinstance(key, str):
            message = f"a key must be a text, not {event.value or 'nothing'}"
            self._report.add(event, "AH010", message, "put quotes around it")
        elif key == "<<" and not event.style:
            message = "merge keys (<<) are not allowed"
            self._report.add(event, "AH010", message, "write the fields out")
        else:
            if not event.style:
                self._keys[key] = key
            return key
        return None

    def _refuse_duplicate(self, event: Event, key: str, first: Event) -> None:
        line = span(first)[0].line + 1
        message = f"the key {shown(key)} stands twice; the first is on line {line}"
        self._report.add(event, "AH002", message, "remove or rename one of the two")

    def _limit_reached(self) -> StopReading:
        message = f"the file has more than {MAX_NODES:,} keys and values"
        event = self._parser.get_event()
        assert event is not None
        self._report.add(event, "AH009", message, "split it into several files")
        return StopReading()


class _Aliases:
    """The named values of a document, and the copies that may still be made of them."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._values: dict[str, Any] = {}
        self._open: set[str] = set()
        self._nodes_left = MAX_NODES

    def open(self, anchor: str | None) -> None:
        """Remember that a named collection has begun; an alias in it would never end."""
        if anchor is not None:
            self._open.add(anchor)

    def close(self, anchor: str | None, value: Any) -> None:
        """Remember a named value that is complete."""
        if anchor is not None:
            self._open.discard(anchor)
            self._values[anchor] = value

    def copy(self, event: AliasEvent) -> Any:
        """Return a copy of the value an alias names."""
        name = event.anchor or ""
        if name in self._open:
            message = f"the alias *{name[:60]} stands inside the value it names"
            self._report.stop(event, "AH009", message, "write the value out")
        if name not in self._values:
            message = f"nothing is named &{name[:60]} above"
            self._report.add(event, "AH001", message, "name a value with & before it is used")
            return None
        value = self._copy(self._values[name])
        if self._nodes_left < 0:
            message = f"aliases make this file larger than {MAX_NODES:,} values"
            self._report.stop(event, "AH009", message, "write less with aliases")
        return value

    def _copy(self, value: Any) -> Any:
        if isinstance(value, str):
            self._nodes_left -= 1 + len(value) // _CHARACTERS_A_NODE
            return value
        self._nodes_left -= 1
        if self._nodes_left < 0:
            return None
        if isinstance(value, dict):
            return {self._copy(key): self._copy(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self._copy(part) for part in value]
        return value
