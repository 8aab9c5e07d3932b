"""The problems of one file while it is read, each with its place."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property
from typing import Final, NoReturn

from yaml import Event, MarkedYAMLError

from arc_halo.config import redact
from arc_halo.errors import Problem
from arc_halo.manifest.positions import Lines, Position, problem_at, span

MAX_DEPTH: Final = 64

TOO_DEEP: Final = f"values are nested more than {MAX_DEPTH} deep"
NEST_LESS: Final = "nest less"

# libyaml from 0.2.6 on has a limit of its own, and may look ahead that far before we see ours.
_LIBYAML_TOO_DEEP: Final = "exceeded maximum nesting depth"

MAX_PROBLEMS: Final = 100
"""Problems reported of one file; reading stops at the last of them."""

CORE_TAG: Final = "tag:yaml.org,2002:"

_UNREADABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HINTS = {
    "mapping values are not allowed in this context": "put quotes around a text that holds ': '",
    "found character that cannot start any token": "put quotes around the text",
    "found undefined tag handle": "a manifest needs no tags: remove it",
    "did not find expected key": "check the indentation of this line and of those above it",
    "could not find expected ':'": "write a colon and a space after the name of a field",
    "found unknown escape character": "put single quotes around the text",
}
_TAB_HINT = "indent with spaces, not with tabs"
_VARIABLE_HINT = (
    'inside [ ] or { } a variable needs quotes: "${NAME}"; '
    "for a number, give the field a line of its own"
)


class StopReading(Exception):
    """Reading this file cannot go on; the problem is already reported."""


class Report:
    """Collects the problems of the file that messages call `label`."""

    def __init__(self, text: str, label: str) -> None:
        self.problems: list[Problem] = []
        self._text = text
        self._label = label

    @cached_property
    def lines(self) -> Lines:
        return Lines(self._text)

    def add(self, event: Event, code: str, message: str, hint: str) -> None:
        """Report a problem at an event; raise `StopReading` when there are enough."""
        self.add_at(self.lines.position(*span(event)), code, message, hint)

    def add_at(self, place: Position, code: str, message: str, hint: str) -> None:
        """Report a problem at a position; raise `StopReading` when there are enough."""
        self.problems.append(problem_at(place, self._label, code, message, hint=hint))
        if len(self.problems) >= MAX_PROBLEMS:
            raise StopReading

    def stop(self, event: Event, code: str, message: str, hint: str) -> NoReturn:
        """Report a problem that makes the rest of the file unreadable."""
        self.add(event, code, message, hint)
        raise StopReading

    def refuse_tag(self, event: Event, tag: str) -> None:
        """Report a tag that a manifest may not use."""
        name = shown(tag.replace(CORE_TAG, "!!"))
        self.add(event, "AH010", f"tags are not allowed: {name}", "remove the tag")

    def add_syntax_error(self, error: MarkedYAMLError) -> None:
        """Report what the YAML parser found."""
        place = self._where(error)
        problem = error.problem or "it cannot be read"
        if problem == _LIBYAML_TOO_DEEP:
            self.add_at(place, "AH009", TOO_DEEP, NEST_LESS)
            return
        line = self.lines.line(place.line)
        hint = _syntax_hint(problem, line[place.column - 1 :], line)
        context = f"{error.context}, " if error.context else ""
        self.add_at(place, "AH001", f"this is not YAML: {context}{problem}", hint)

    def add_unreadable_character(self) -> None:
        """Report the first character that YAML does not allow in a file."""
        match = _UNREADABLE.search(self._text)
        if match is None:
            raise AssertionError("the YAML parser refused a character that it allows")
        message = f"the character U+{ord(match[0]):04X} may not stand in a manifest"
        self.add_at(
            self.lines.at(match.start()), "AH010", message, "remove it; is this a text file?"
        )

    def _where(self, error: MarkedYAMLError) -> Position:
        """Prefer the place where an unclosed bracket or quote began to the end of the file."""
        for mark in (error.problem_mark, error.context_mark):
            if mark is not None and not self.lines.is_end(mark):
                return self.lines.position(mark, mark)
        return self.lines.at(max(0, len(self._text.rstrip()) - 1))


def with_notice(problems: list[Problem], count: int) -> list[Problem]:
    """Return the problems of one file; the last says so if only so many were looked for."""
    if count < MAX_PROBLEMS:
        return problems
    last = problems[-1]
    notice = f"{last.hint}; of each file only {MAX_PROBLEMS} problems are shown"
    return [*problems[:-1], replace(last, hint=notice)]


def shown(text: str, longest: int = 60) -> str:
    """Return a text quoted for a message: on one line, controls escaped, not too long, and with
    `***` for what looks like a secret."""
    text = redact(text)
    return repr(text if len(text) <= longest else text[: longest - 1] + "…")


def _syntax_hint(problem: str, rest: str, line: str) -> str:
    if rest.startswith("\t"):
        return _TAB_HINT
    if "expected ',' or" in problem and "${" in line:
        return _VARIABLE_HINT
    return _HINTS.get(problem, "check this line and the one above it")
