"""A manifest in one piece, as YAML: each value with a comment that says where it is from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from arc_halo.manifest.origins import Final, Origin
from arc_halo.manifest.positions import Pointer
from arc_halo.manifest.writing import key_lines, scalar
from arc_halo.types import JsonObject


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
                yield from key_lines(key, text)
            else:
                yield from key_lines(key)
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
            return f"{scalar(value)}  # {self._origins[pointer]}"
        if isinstance(value, dict):
            return None
        origins = {self._origins.get((*pointer, index)) for index in range(len(value))}
        if len(origins) > 1 or None in origins:
            return None
        return f"[{', '.join(map(scalar, value))}]  # {origins.pop()}"
