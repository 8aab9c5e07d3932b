"""Params of strategies: defaults filled in, problems explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from arc_halo.manifest.phrases import Phrase, phrase_of
from arc_halo.manifest.positions import Pointer
from arc_halo.manifest.secrecy import is_hidden
from arc_halo.types import JsonObject


def with_defaults(params: JsonObject, schema: JsonObject) -> JsonObject:
    """`params` with the defaults of `schema` added: what the function will be called with."""
    defaults = {
        name: field["default"]
        for name, field in schema.get("properties", {}).items()
        if "default" in field
    }
    properties = schema.get("properties", {})
    whole = {**defaults, **params}
    return {name: as_number(value, properties.get(name, {})) for name, value in whole.items()}


def as_number(value: Any, schema: JsonObject) -> Any:
    """The value, as a float where the schema says number: 1 and 1.0 are the same."""
    kinds = schema.get("type", ())
    is_number = "number" in ([kinds] if isinstance(kinds, str) else kinds)
    if is_number and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def with_gradients(schema: JsonObject, member_params: Sequence[str] = ()) -> JsonObject:
    """The schema of params of which each may be a list, one value after another; none is required.

    Those of `member_params` may be mappings too, of such values by model. A param that is a list
    by itself stays as it is.
    """
    properties = {
        name: each if takes_lists(each) else _or_list(each)
        for name, each in schema.get("properties", {}).items()
    }
    properties |= {name: _or_mapping(properties[name]) for name in member_params}
    return {**{k: v for k, v in schema.items() if k != "required"}, "properties": properties}


def takes_lists(schema: JsonObject) -> bool:
    """Whether a param may be a list by itself, so that a list is no gradient."""
    kinds = schema.get("type", "array")
    return "array" in ([kinds] if isinstance(kinds, str) else kinds) and "enum" not in schema


def _or_list(schema: JsonObject) -> JsonObject:
    return {
        "if": {"type": "array"},
        "then": {"type": "array", "minItems": 1, "items": schema},
        "else": schema,
    }


def _or_mapping(schema: JsonObject) -> JsonObject:
    return {
        "if": {"type": "object"},
        "then": {"type": "object", "minProperties": 1, "additionalProperties": schema},
        "else": schema,
    }


def member_texts(params: JsonObject) -> Iterator[str]:
    """The models that params of a rule name."""
    for value in params.values():
        if isinstance(value, dict):
            yield from value


def params_problems(
    params: JsonObject, schema: JsonObject, place: Pointer = ()
) -> Iterator[tuple[Pointer, Phrase]]:
    """Where in `params` each thing is that is wrong with them, and what to say of it.

    They stand at `place`.
    """
    from arc_halo.manifest.explain import refusal_of
    from arc_halo.manifest.keywords import Validator

    for error in Validator(schema).iter_errors(params):
        pointer = tuple(error.absolute_path)
        whole = (*place, *pointer)
        is_secret = is_hidden(whole, error.instance)
        yield pointer, phrase_of(refusal_of(error, whole, is_secret=is_secret))
