"""The quick validator: it may accept, and leaves it to jsonschema to refuse and to explain.

It is fastjsonschema's code for a draft-07 copy of the schema. A plugin's schema that could mean
something else there is replaced by one that nothing fits, so that jsonschema is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from arc_halo.types import JsonObject

Accepts = Callable[[Any], bool]

PARAMS = "params_"
"""Definitions whose names begin with this come from plugins."""


def acceptor(schema: JsonObject) -> Accepts:
    """Return a function that is true only of values that fit `schema`; it is made once."""
    return _acceptor(json.dumps(_draft_7(schema)))


def is_portable(schema: object) -> bool:
    """Say whether a schema keeps to keywords that mean the same to both validators."""
    if isinstance(schema, bool):
        return True
    return isinstance(schema, dict) and all(
        key.startswith("x-") or (key in _PORTABLE and _PORTABLE[key](value))
        for key, value in schema.items()
    )


@lru_cache(maxsize=4)
def _acceptor(text: str) -> Accepts:
    from fastjsonschema import JsonSchemaDefinitionException, JsonSchemaValueException

    try:
        check = _compile(json.loads(text))
    except JsonSchemaDefinitionException:
        return lambda value: False

    def accepts(value: Any) -> bool:
        try:
            check(value)
        except JsonSchemaValueException:
            return False
        return True

    return accepts


def _compile(schema: JsonObject) -> Callable[[Any], Any]:
    """Do what `fastjsonschema.compile` does, but 4.0 is no integer: code wants an int."""
    from fastjsonschema.draft04 import CodeGeneratorDraft04
    from fastjsonschema.draft07 import CodeGeneratorDraft07
    from fastjsonschema.ref_resolver import RefResolver

    class Generator(CodeGeneratorDraft07):
        generate_type = CodeGeneratorDraft04.generate_type

    resolver = RefResolver.from_schema(schema, store={})
    generator = Generator(  # type: ignore[no-untyped-call]  # it has no types
        schema, resolver=resolver, use_default=False, use_formats=False, detailed_exceptions=False
    )
    names: dict[str, Any] = generator.global_state
    exec(generator.func_code, names)
    check: Callable[[Any], Any] = names[resolver.get_scope_name()]
    return check


def _draft_7(schema: JsonObject) -> JsonObject:
    definitions = {
        name: definition if not name.startswith(PARAMS) or is_portable(definition) else False
        for name, definition in schema["$defs"].items()
    }
    copy = {key: value for key, value in schema.items() if key not in ("$id", "if", "then")}
    draft = "http://json-schema.org/draft-07/schema#"
    return {**copy, "$schema": draft, "$defs": definitions}


def _is_any(value: object) -> bool:
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_type(value: object) -> bool:
    return isinstance(value, str) or _is_text_list(value)


def _is_pattern(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


def _are_portable(value: object) -> bool:
    return isinstance(value, list) and all(map(is_portable, value))


def _is_property_map(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_portable, value.values()))


_LIMITS = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "minProperties", "maxProperties"),
)
_PORTABLE: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("title", "description", "default", "examples", "$comment"), _is_any),
    **dict.fromkeys(_LIMITS, _is_number),
    **dict.fromkeys(("additionalProperties", "items", "not", "if", "then", "else"), is_portable),
    **dict.fromkeys(("allOf", "anyOf", "oneOf"), _are_portable),
    "type": _is_type,
    "enum": _is_text_list,
    "required": _is_text_list,
    "pattern": _is_pattern,
    "properties": _is_property_map,
}
