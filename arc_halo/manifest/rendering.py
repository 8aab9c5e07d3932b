"""A manifest in one piece, written as YAML: each value with a comment that says where it is from.

What is written here reads as the same manifest: texts stay texts, also for readers of YAML 1.1,
and what looks like a variable is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from arc_halo.manifest.origins import Final, Origin
from arc_halo.manifest.positions import Pointer
from arc_halo.manifest.variables import escape
from arc_halo.types import JsonObject

# Letters first, so that no reader takes it for a number or a date.
_PLAIN = re.compile(r"[A-Za-z][\w./@+-]*(?: [\w./@+()-]+)*", re.ASCII)
_WORDS = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))
_ESCAPED = re.compile("[\x7f-\xa0\u2028\u2029\ufeff]")


def as_yaml(final: Final) -> str:
    """The YAML of a manifest, with origins as comments."""
    return "\n".join(_Writer(final.origins).mapping(final.data, ())) + "\n"


def origins_json(final: Final) -> JsonObject:
    """The origins by JSON pointer (RFC 6901)."""
    return {
        "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in pointer): {
            "file": origin.file,
            "line": origin.line,
            "variables": list(origin.variables),
            "defaults": list(origin.defaults),
        }
        for pointer, origin in final.origins.items()
    }


class _Writer:
    """Writes containers in blocks, and a list of scalars from one line on one line."""

    def __init__(self, origins: dict[Pointer, Origin]) -> None:
        self._origins = origins

    def mapping(self, value: JsonObject, pointer: Pointer) -> Iterator[str]:
        for key, part in value.items():
            place = (*pointer, key)
            if (text := self._on_one_line(part, place)) is not None:
                yield f"{_text(key)}: {text}"
            else:
                yield f"{_text(key)}:"
                yield from (f"  {line}" for line in self._block(part, place))

    def _block(self, value: Any, pointer: Pointer) -> Iterator[str]:
        if isinstance(value, dict):
            yield from self.mapping(value, pointer)
            return
        for index, part in enumerate(value):
            place = (*pointer, index)
            text = self._on_one_line(part, place)
            lines = iter((text,)) if text is not None else self._block(part, place)
            yield f"- {next(lines)}"
            yield from (f"  {line}" for line in lines)

    def _on_one_line(self, value: Any, pointer: Pointer) -> str | None:
        if pointer in self._origins:
            return f"{_scalar(value)}  # {self._origins[pointer]}"
        if isinstance(value, dict):
            return None
        origins = {self._origins.get((*pointer, index)) for index in range(len(value))}
        if len(origins) > 1 or None in origins:
            return None
        return f"[{', '.join(map(_scalar, value))}]  # {origins.pop()}"


def _scalar(value: Any) -> str:
    """A scalar, or an empty container."""
    return _text(escape(value)) if isinstance(value, str) else json.dumps(value)


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)
