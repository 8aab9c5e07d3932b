"""JSON Schema keywords that are judged here, not by jsonschema.

So that they agree with the quick validator, keep the order of the file, take linear time and
give one error for each thing that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from arc_halo.types import JsonObject

Errors = Iterator[ValidationError]


def _pattern(validator: Any, pattern: str, value: object, schema: JsonObject) -> Errors:
    """As `re.search`, but `$` is the end, not the place before a last line break."""
    if isinstance(value, str) and not re.search(_END.sub(r"\\Z", pattern), value):
        yield ValidationError("pattern")


def _required(validator: Any, names: list[str], value: object, schema: JsonObject) -> Errors:
    """One error for each missing field; its message is the field's name."""
    if isinstance(value, dict):
        for name in names:
            if name not in value:
                yield ValidationError(name)


def _additional(validator: Any, rule: Any, value: object, schema: JsonObject) -> Errors:
    """One error for each unknown field; its path leads to the field."""
    if not isinstance(value, dict):
        return
    for name in value:
        if name in schema.get("properties", {}) or _fits_a_pattern(name, schema):
            continue
        if rule is False:
            yield ValidationError("unknown", path=(name,))
        else:
            yield from validator.descend(value[name], rule, path=name)


def _unique(validator: Any, is_asked: bool, value: object, schema: JsonObject) -> Errors:
    """One error for each item that stood before; its path leads to the item."""
    if not is_asked or not isinstance(value, list):
        return
    seen: set[Hashable] = set()
    for index, item in enumerate(value):
        identity = _identity(item)
        if identity in seen:
            yield ValidationError("twice", path=(index,), instance=item)
        seen.add(identity)


def _is_integer(checker: object, value: object) -> bool:
    """Tell an int, as code wants it; JSON Schema would take 4.0 as well."""
    return isinstance(value, int) and not isinstance(value, bool)


def _fits_a_pattern(name: str, schema: JsonObject) -> bool:
    return any(re.search(pattern, name) for pattern in schema.get("patternProperties", {}))


def _identity(value: Any) -> Hashable:
    """Return a hashable stand-in, equal for equal JSON values: 1 is 1.0, but not true."""
    if isinstance(value, dict):
        return dict, frozenset((name, _identity(part)) for name, part in value.items())
    if isinstance(value, list):
        return list, tuple(map(_identity, value))
    return isinstance(value, bool), value


_END = re.compile(r"(?<!\\)\$")

Validator = extend(  # type: ignore[no-untyped-call]  # its stub has no types
    Draft202012Validator,
    {
        "pattern": _pattern,
        "required": _required,
        "additionalProperties": _additional,
        "uniqueItems": _unique,
    },
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)
"""The jsonschema validator with these keywords."""
