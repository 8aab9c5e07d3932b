"""Texts that commands are given, as files or on standard input, and the inputs that they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from arc_halo.errors import InvalidInputError


def read_given(source: TextIO | Path) -> str:
    """The text of an open file, or of that name. Raises `InvalidInputError` unless it is UTF-8."""
    try:
        return source.read_text("utf-8") if isinstance(source, Path) else source.read()
    except UnicodeDecodeError as exc:
        name = source if isinstance(source, Path) else getattr(source, "name", "the input")
        raise InvalidInputError(
            f"{name}: the byte 0x{exc.object[exc.start]:02X} at {exc.start} is not UTF-8",
            hint="save it as UTF-8 text",
            code="AH006",
        ) from exc


def read_inputs(text: str) -> list[Any]:
    """The inputs that a text holds: those of a JSON list, one a line of JSON, or the text itself.

    Raises `InvalidInputError` for a text without one, and for lines of which the first begins as
    JSON lists and objects do, and one is no JSON.
    """
    if not text.strip():
        hint = "give JSON, JSON lines or text"
        raise InvalidInputError("there is no input", hint=hint, code="AH006")
    try:
        value = json.loads(text)
    except ValueError:
        return _lines(text)
    return value if isinstance(value, list) else [value]


def _lines(text: str) -> list[Any]:
    # Not splitlines(): JSON may hold the other characters that break lines.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        return [_line(number, line) for number, line in lines]
    except InvalidInputError:
        if text.lstrip()[0] in "[{":
            raise
        return [text.rstrip("\n")]


def _line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as exc:
        raise InvalidInputError(
            f"line {number} of the input is no JSON: {exc}",
            hint="give one JSON value a line, or one JSON list",
            code="AH006",
        ) from exc
