"""Problems found while names are resolved, each at the place of its declaration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from arc_halo.errors import Problem
from arc_halo.manifest import load
from arc_halo.manifest.documents import Where
from arc_halo.names import did_you_mean
from arc_halo.types import JsonObject

Pointer = tuple[str | int, ...]


@dataclass(slots=True, kw_only=True)
class Found:
    """A document on its way to a declaration, and where it stands."""

    name: str
    data: JsonObject
    source: load.Source
    pointer: Pointer

    @property
    def where(self) -> Where:
        return Where(file=self.source.label, pointer=self.pointer)


@dataclass(slots=True)
class Problems:
    """Collects problems; nothing stops at the first."""

    listed: list[Problem] = field(default_factory=list)

    def add(
        self,
        found: Found,
        pointer: Pointer,
        code: str,
        message: str,
        hint: str | None,
        *,
        key: bool = False,
    ) -> None:
        """A problem at `pointer` inside a document; `key` marks the key, not its value."""
        whole = (*found.pointer, *pointer)
        self.listed.append(load.problem(found.source, whole, code, message, hint=hint, key=key))

    def twice(self, found: Found, first: Found) -> None:
        source, pointer = load.home(first.source, first.pointer)
        line = load.locate(source, pointer, key=True).line
        message = f"{found.name} is declared twice"
        hint = f"it is first declared at {source.label}:{line}"
        self.add(found, (), "AH013", message, hint, key=True)

    def unknown_strategy(
        self, found: Found, pointer: Pointer, name: str, known: Iterable[str]
    ) -> None:
        hint = did_you_mean(name, known) or "`arc-halo plugins` lists what is loaded"
        self.add(found, pointer, "AH032", f"unknown strategy {name!r}", hint)
