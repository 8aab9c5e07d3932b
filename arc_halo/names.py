"""Names of resources: their form, references to models, and guesses at what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

NAME = r"[a-z0-9][a-z0-9._-]{0,127}"
VERSION = r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}"

ID_DIGITS = 6
"""Of an id, at least so many of its first digits name what has it."""

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_VERSION = re.compile(VERSION)
_NAME = re.compile(NAME)
_REFERENCE = re.compile(rf"(?P<name>{NAME})(?:@(?P<version>{VERSION})|:(?P<alias>{NAME}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReference:
    """`name`, `name@version` or `name:alias`."""

    name: str
    version: str | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}@{self.version}"
        return f"{self.name}:{self.alias}" if self.alias is not None else self.name


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    return _VERSION.fullmatch(text) is not None


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can store it: it has no NUL and no half of a character."""
    return _UNSTORABLE.search(text) is None


def parse_reference(text: str) -> ModelReference | None:
    """The reference that `text` writes, or None when it is not one."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    return ModelReference(name=match["name"], version=match["version"], alias=match["alias"])


def id_digits(text: str) -> str:
    """The hexadecimal digits of an id, or of its beginning; "" for what is no such thing."""
    digits = text.lower().replace("-", "")
    is_beginning = len(digits) >= ID_DIGITS and re.fullmatch("[0-9a-f]{1,32}", digits)
    return digits if is_beginning else ""


def root_digits(text: str) -> str:
    """The hexadecimal digits of a root of weights, or of its beginning; "" for what is none."""
    digits = text.lower().removeprefix("sha256:")
    is_beginning = len(digits) >= ID_DIGITS and re.fullmatch("[0-9a-f]{1,64}", digits)
    return digits if is_beginning else ""


def shown(given: object) -> str:
    """What was given for a name or an id, as an error tells it: of what is neither, the type."""
    if isinstance(given, str | UUID):
        return repr(str(given)[:80])
    return "None" if given is None else f"of the type {type(given).__name__}"


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint naming the closest known name, or None when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else None
