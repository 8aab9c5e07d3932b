"""Params of strategies: defaults filled in, problems explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from arc_halo.types import JsonObject


def with_defaults(params: JsonObject, schema: JsonObject) -> JsonObject:
    """`params` with the defaults of `schema` added: what the function will be called with."""
    defaults = {
        name: field["default"]
        for name, field in schema.get("properties", {}).items()
        if "default" in field
    }
    return {**defaults, **params}


def params_problems(
    params: JsonObject, schema: JsonObject
) -> Iterator[tuple[tuple[Any, ...], str, str]]:
    """(pointer, code, message) of each thing wrong with `params`."""
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema).iter_errors(params):
        code = "AH003" if error.validator == "additionalProperties" else "AH006"
        yield tuple(error.absolute_path), code, error.message
