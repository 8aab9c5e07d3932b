"""What jsonschema refuses, told to people: where, what, and what to write instead.

Imported only when a file was not accepted, for jsonschema takes its time to load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match

from arc_halo.errors import PluginError, Problem
from arc_halo.manifest.accept import PARAMS
from arc_halo.manifest.keywords import Validator
from arc_halo.manifest.load import Source
from arc_halo.manifest.phrases import Phrase, dotted, phrase
from arc_halo.manifest.positions import Pointer, problem, written
from arc_halo.manifest.report import MAX_PROBLEMS
from arc_halo.types import JsonObject


def explain(source: Source, data: JsonObject, schema: JsonObject) -> list[Problem]:
    """Return the problems that `data`, a part of the source's, has by `schema`.

    At most `MAX_PROBLEMS`. Raises `PluginError` when a strategy's params schema is no schema.
    """
    _check_params(schema)
    secrets = _secret_fields(schema)
    errors = (_deepest(error) for error in Validator(schema).iter_errors(data))
    findings = dict.fromkeys(
        _finding(source, error, secrets) for error in islice(errors, MAX_PROBLEMS)
    )
    mistyped = {finding.pointer for finding in findings if finding.phrase.code == "AH004"}
    return [
        _problem(source, finding, secrets)
        for finding in findings
        if finding.phrase.code == "AH004" or finding.pointer not in mistyped
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    pointer: Pointer
    phrase: Phrase


def _check_params(schema: JsonObject) -> None:
    for name, definition in schema["$defs"].items():
        if name.startswith(PARAMS):
            try:
                Draft202012Validator.check_schema(definition)
            except SchemaError as error:
                raise PluginError(
                    f"strategy {definition['title']!r}: its params_schema is not a JSON Schema: "
                    f"{dotted(tuple(error.absolute_path)) or 'it'}: {error.message}",
                    hint="correct the plugin's params_schema",
                ) from error


def _secret_fields(schema: JsonObject) -> set[str]:
    fields: Mapping[str, JsonObject] = schema["properties"]
    return {name for name, field in fields.items() if field.get("x-arc-halo", {}).get("secret")}


def _deepest(error: ValidationError) -> ValidationError:
    """Return the error that tells most: of alternatives, the one that fits the value best."""
    if error.context and all(_is_type_here(part) for part in error.context):
        types = [part.validator_value for part in error.context]
        return ... 
