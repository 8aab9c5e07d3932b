"""Where secrets may stand in a manifest, by mistake: their values are never repeated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from arc_halo.config import redact

Pointer = tuple[str | int, ...]

SECRET_NAME: Final = (
    r"(?:[\w-]*[_-])?(?:api|access|auth|client|private|secret)?"
    r"(?:password|passwd|pwd|secret|token|key|authorization|credentials?)"
)
"""A field that is named for what it hides, as a regular expression."""

_NAME = re.compile(SECRET_NAME, re.IGNORECASE)
_TELLING = re.compile(
    r"(?:[\w-]*[_-])?(?:passw(?:or)?d|secret|(?:api|access|secret)[_-]?key|(?:auth|access)[_-]?token)",
    re.IGNORECASE,
)
"""A field that holds a secret, and hardly anything else."""
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_ALLOWED_SECRETS = ("settings", "allow", "secrets")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_WORD = re.compile(r"[\w-]+", re.ASCII)
_VARIABLE_FIELDS = ("env", "key_env")


def may_hold_secrets(pointer: Pointer) -> bool:
    """Say whether a value at that place may be a secret: a param of a runner, a field that is
    named so, or what should be the name of a secret."""
    is_param = pointer[:1] == ("models",) and pointer[2:4] == ("runner", "params")
    # The first two are a section and the name of a resource.
    is_named = any(isinstance(part, str) and _NAME.fullmatch(part) for part in pointer[2:])
    return is_param or is_named or pointer[:3] == _ALLOWED_SECRETS


def literal_secrets(params: Any, place: Pointer = ()) -> Iterator[Pointer]:
    """Where in the params of a runner a secret stands itself: in an address, by its form, or by
    the name of its field, unless that has the name of a variable."""
    if isinstance(params, dict | list):
        parts = params.items() if isinstance(params, dict) else enumerate(params)
        for part, value in parts:
            yield from literal_secrets(value, (*place, part))
    elif isinstance(params, str) and params:
        is_form = bool(_ADDRESS.fullmatch(params) or _WORD.fullmatch(params))
        is_named = any(isinstance(part, str) and _TELLING.fullmatch(part) for part in place)
        if (is_form and redact(params) != params) or (is_named and not _VARIABLE.fullmatch(params)):
            yield place


def is_hidden(pointer: Pointer, value: object) -> bool:
    """Say whether a value that stands at such a place is not to be shown: a text that is no
    plain name of a variable where one belongs."""
    if not may_hold_secrets(pointer) or not isinstance(value, str):
        return False
    names_variable = pointer[:3] == _ALLOWED_SECRETS or pointer[-1] in _VARIABLE_FIELDS
    return not (names_variable and _VARIABLE.fullmatch(value))
