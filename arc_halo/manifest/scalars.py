"""What a scalar means: without quotes numbers as JSON writes them, truths, nothing, else text.

`no`, `on`, `010`, `0o7`, `1_000`, `12:30:45` and dates are text: they never change on the way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from yaml import ScalarEvent

from arc_halo.manifest.positions import span
from arc_halo.manifest.report import CORE_TAG, Report, shown
from arc_halo.manifest.variables import MARK, expand, is_one_variable

Scalar = None | bool | int | float | str

MAX_SCALAR: Final = 1024 * 1024
"""Characters of one scalar."""

_CONSTANTS: dict[str, Scalar] = {
    "": None,
    "~": None,
    **dict.fromkeys(("null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMERIC_STARTS = frozenset("-+.0123456789")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?").fullmatch
_NOT_A_NUMBER = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)").fullmatch
CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]").search
SMALLEST: Final = -(2**63)
LARGEST: Final = 2**63 - 1
_MAX_DIGITS = 20
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
}
_KEEP_AS_TEXT = "put quotes around it to keep it as text"


class ScalarError(ValueError):
    """A scalar that no database column holds: NaN, infinity, a number too large."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def read_plain(text: str) -> Scalar:
    """Return what the unquoted `text` means, or raise `ScalarError`."""
    value = _CONSTANTS.get(text, text)
    if value is text and text[0] in _NUMERIC_STARTS:
        return _number(text)
    return value


class ScalarReader:
    """Turns the scalars of one file into values; with `env`, expands variables in them."""

    def __init__(self, report: Report, env: Mapping[str, str] | None) -> None:
        self._report = report
        self._env = env

    def value(self, event: ScalarEvent) -> Scalar:
        """Return the value of a scalar, its text where there is a problem to report."""
        if self._env is not None and MARK in event.value:
            return self._expanded(event, self._env)
        return self.literal(event)

    def literal(self, event: ScalarEvent) -> Scalar:
        """Return the value of a scalar whose variables are not to be expanded."""
        text = event.value
        if len(text) > MAX_SCALAR:
            message = f"this text has more than {MAX_SCALAR:,} characters"
            self._report.stop(event, "AH009", message, "keep it in a file of its own")
        if event.tag is not None:
            return self._tagged(event, event.tag)
        if event.style:
            return self._quoted(event)
        value = _CONSTANTS.get(text, text)
        if value is text and text[0] in _NUMERIC_STARTS:
            return self._plain(event, text)
        return value

    def _quoted(self, event: ScalarEvent) -> str:
        if event.style == '"' and (control := CONTROL(event.value)):
            message = f"the text holds the control character U+{ord(control[0]):04X}"
            self._report.add(event, "AH010", message, "take the escape out")
        return event.value

    def _plain(self, event: ScalarEvent, text: str) -> Scalar:
        try:
            return read_plain(text)
        except ScalarError as error:
            self._report.add(event, error.code, error.message, _KEEP_AS_TEXT)
            return text

    def _tagged(self, event: ScalarEvent, tag: str) -> Scalar:
        kind = tag.removeprefix(CORE_TAG)
        if kind not in _TYPES:
            self._report.refuse_tag(event, tag)
        elif kind == "str":
            return self._quoted(event)
        else:
            value = self._plain(event, event.value)
            if type(value) in _TYPES[kind]:
                return value
            message = f"{shown(event.value)} is not of the type of its tag !!{kind}"
            self._report.add(event, "AH010", message, "remove the tag")
        return event.value

    def _expanded(self, event: ScalarEvent, env: Mapping[str, str]) -> Scalar:
        text, problems = expand(event.value, env)
        for problem in problems:
            place = self._report.lines.find(problem.reference, *span(event))
            self._report.add_at(place, "AH008", problem.message, problem.hint)
        if control := CONTROL(text):
            message = f"a variable holds the control character U+{ord(control[0]):04X}"
            self._report.add(event, "AH010", message, "change the variable")
        unquoted = not event.style and event.tag is None
        if unquoted and text and not problems and is_one_variable(event.value):
            return self._plain(event, text)
        return text


def _number(text: str) -> int | float | str:
    match = _NUMBER(text)
    if match is None:
        if _NOT_A_NUMBER(text):
            raise ScalarError("AH010", f"{text} is not a number that can be stored")
        return text
    fraction, exponent = match.groups()
    return _integer(text) if fraction is None and exponent is None else _float(text)


def _integer(text: str) -> int:
    if len(text) <= _MAX_DIGITS and SMALLEST <= (value := int(text)) <= LARGEST:
        return value
    raise ScalarError("AH007", "the number does not fit into 64 bits")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ScalarError("AH007", "the number does not fit into 64 bits")
    return value
