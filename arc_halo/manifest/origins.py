"""Where each value of a manifest comes from: its file and line, an overlay's too, and variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from arc_halo.config import redact
from arc_halo.errors import ManifestError, Problem
from arc_halo.manifest.include import SECTIONS
from arc_halo.manifest.load import Source
from arc_halo.manifest.parse import parse
from arc_halo.manifest.positions import Pointer, home, line_of, problem
from arc_halo.manifest.variables import MARK, variables_in
from arc_halo.types import JsonObject

FIELDS = ("version", "project", "database", "plugins", "storage", "settings", *SECTIONS)
"""The fields of a manifest that is in one file, in the order in which they are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The file and line that a value stands at, the variables in it, and those whose default
    stood in for them."""

    file: str
    line: int
    variables: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = [f"variable {name}" for name in self.variables]
        defaults = [f"default of {name}" for name in self.defaults]
        return ", ".join([f"{self.file}:{self.line}", *names, *defaults])


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """A manifest in one piece, and the origin of each scalar and empty container in it."""

    data: JsonObject
    origins: dict[Pointer, Origin]


def final(sources: Sequence[Source]) -> Final:
    """The manifest that loaded and valid `sources` come to, without `include`.

    Raises `ManifestError` for a variable that holds a secret: variables are public.
    """
    data: JsonObject = {}
    origins: dict[Pointer, Origin] = {}
    problems: list[Problem] = []
    for source in sources:
        for pointer, value in _leaves(_shown(source), ()):
            origin = origins[pointer] = _origin(source, pointer, sources[0].variables)
            if origin.variables and isinstance(value, str) and redact(value) != value:
                problems.append(_secret(source, pointer, origin))
        for field, value in _shown(source).items():
            data[field] = {**data.get(field, {}), **value} if field in SECTIONS else value
    if problems:
        raise ManifestError(problems)
    return Final(data={field: data[field] for field in FIELDS if field in data}, origins=origins)


def _shown(source: Source) -> JsonObject:
    """What a file adds: an included one resources only, and no section that is empty."""
    fields = SECTIONS if source.included else FIELDS
    return {
        field: value
        for field, value in source.data.items()
        if field in fields and (value or field not in SECTIONS)
    }


def _leaves(value: Any, pointer: Pointer) -> Iterator[tuple[Pointer, Any]]:
    if isinstance(value, dict | list) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for part, inner in parts:
            yield from _leaves(inner, (*pointer, part))
    elif pointer:
        yield pointer, value


def _origin(source: Source, pointer: Pointer, values: Mapping[str, str | None]) -> Origin:
    file, place = home(source, pointer)
    text = _as_written(file, place)
    found = variables_in(text) if isinstance(text, str) else {}
    defaults = tuple(name for name, has in found.items() if has and not values.get(name))
    return Origin(
        file=file.label,
        line=line_of(file, place),
        variables=tuple(name for name in found if name not in defaults),
        defaults=defaults,
    )


def _as_written(file: Source, place: Pointer) -> Any:
    """A value before variables were expanded; None of a file that has no variables."""
    if (data := _unexpanded(file)) is None:
        return None
    value: Any = data
    for part in place:
        value = value[part]
    return value


@lru_cache(maxsize=8)
def _unexpanded(file: Source) -> JsonObject | None:
    return parse(file.text, label=file.label)[0] if MARK in file.text else None


def _secret(source: Source, pointer: Pointer, origin: Origin) -> Problem:
    message = f"what {origin.variables[0]} holds looks like a secret, and variables are public"
    hint = "secrets are named as {env: NAME}, where the schema has a field for one"
    return problem(source, pointer, "AH006", message, hint=hint)
