"""YAML as we write it: it reads back as exactly what it was, with our own loader.

Texts stay texts, also for readers of YAML 1.1, and what looks like a variable is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from arc_halo.manifest.report import MAX_DEPTH
from arc_halo.manifest.scalars import CONTROL, LARGEST, MAX_SCALAR, SMALLEST
from arc_halo.manifest.variables import escape
from arc_halo.types import JsonObject

WIDTH: Final = 96
"""Columns up to which a mapping or a list of scalars stands on one line."""

# Letters first, so that no reader takes it for a number or a date; or a size, or a time.
_PLAIN = re.compile(
    r"[A-Za-z][\w./@+-]*(?: [\w./@+()-]+)*|[1-9][0-9]*(?:[KMGT]i?B|kB|B|[dhms])", re.ASCII
)
_WORDS = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))
_ESCAPED = re.compile("[\x7f-\xa0\u2028\u2029\ufeff]")
_LONGEST_KEY = 1000


def mapping_lines(value: JsonObject, *, is_escaped: bool = True) -> Iterator[str]:
    """The lines of a mapping: containers in blocks, short ones of scalars on one line.

    Variables in its texts stay variables unless `is_escaped`.
    """
    for key, part in value.items():
        if (line := _on_one_line(part, is_escaped)) is not None:
            yield from key_lines(key, line)
        else:
            yield from key_lines(key)
            yield from (f"  {line}" for line in _block(part, is_escaped))


def key_lines(key: str, value: str | None = None) -> list[str]:
    """A key, and its value where it stands beside it."""
    said, rest = text(key), "" if value is None else f" {value}"
    if len(said) > _LONGEST_KEY:  # a reader looks no further for the colon
        return [f"? {said}", f":{rest}"]
    return [f"{said}:{rest}"]


def scalar(value: Any, *, is_escaped: bool = True) -> str:
    """A scalar, or an empty container; a whole number of more than 64 bits as a float."""
    if isinstance(value, str):
        return text(escape(value) if is_escaped else value)
    if isinstance(value, int) and not SMALLEST <= value <= LARGEST:
        return json.dumps(float(value))
    return json.dumps(value)


def text(value: str) -> str:
    """A text, in quotes where it needs them; variables in it are not escaped."""
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)


def is_writable(value: Any, depth: int = 0) -> bool:
    """Whether YAML that we read can hold it: JSON can do more, in files of architectures."""
    if isinstance(value, str):
        return len(escape(value)) <= MAX_SCALAR and CONTROL(value) is None
    if isinstance(value, dict | list):
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return depth < MAX_DEPTH and all(is_writable(part, depth + 1) for part in parts)
    if isinstance(value, int) and not SMALLEST <= value <= LARGEST:
        return is_float(value)
    return True


def is_float(value: int) -> bool:
    """Whether a whole number is one that a float holds exactly."""
    try:
        return float(value) == value
    except OverflowError:
        return False


def size_of(value: Any) -> int:
    """How many keys and values it has, which is what a file may have so many of."""
    if isinstance(value, dict):
        return 1 + sum(1 + size_of(part) for part in value.values())
    return 1 + sum(map(size_of, value)) if isinstance(value, list) else 1


def _block(value: Any, is_escaped: bool) -> Iterator[str]:
    if isinstance(value, dict):
        yield from mapping_lines(value, is_escaped=is_escaped)
        return
    for part in value:
        line = _on_one_line(part, is_escaped)
        lines = iter((line,)) if line is not None else _block(part, is_escaped)
        yield f"- {next(lines)}"
        yield from (f"  {line}" for line in lines)


def _on_one_line(value: Any, is_escaped: bool) -> str | None:
    """A scalar, an empty container, or one of scalars that is short enough."""
    if not isinstance(value, dict | list) or not value:
        return scalar(value, is_escaped=is_escaped)
    parts = value.values() if isinstance(value, dict) else value
    if any(isinstance(part, dict | list) and part for part in parts):
        return None
    said = [scalar(part, is_escaped=is_escaped) for part in parts]
    if isinstance(value, list):
        found = f"[{', '.join(said)}]"
    else:
        pairs = zip(map(text, value), said, strict=True)
        found = f"{{{', '.join(f'{key}: {each}' for key, each in pairs)}}}"
    return found if len(found) <= WIDTH else None
