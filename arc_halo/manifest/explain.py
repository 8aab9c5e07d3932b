"""What jsonschema refuses, as problems with their places.

Imported only when a file was not accepted, for jsonschema takes its time to load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match

from arc_halo.errors import PluginError, Problem
from arc_halo.manifest.accept import PARAMS
from arc_halo.manifest.keywords import Validator
from arc_halo.manifest.load import Source
from arc_halo.manifest.phrases import NOTES, Phrase, Refusal, dotted, phrase_of
from arc_halo.manifest.positions import Pointer, problem, written
from arc_halo.manifest.report import MAX_PROBLEMS, with_notice
from arc_halo.manifest.secrecy import is_hidden
from arc_halo.types import JsonObject

_AT_THE_KEY = ("additionalProperties", "required")


def explain(
    source: Source, parts: Iterable[tuple[JsonObject, JsonObject]], schema: JsonObject
) -> list[Problem]:
    """Return the problems of parts of a source, each by the variant of `schema` it comes with.

    At most `MAX_PROBLEMS`. Raises `PluginError` when a strategy's params schema is no schema.
    """
    _check_params(schema)
    errors = (
        _telling(error) for part, variant in parts for error in Validator(variant).iter_errors(part)
    )
    findings = [_find(source, error, schema) for error in islice(errors, MAX_PROBLEMS)]
    mistyped = {finding.pointer for finding in findings if finding.phrase.code == "AH004"}
    told = [
        _problem(source, finding)
        for finding in dict.fromkeys(findings)
        if finding.phrase.code == "AH004" or finding.pointer not in mistyped
    ]
    return with_notice(told, len(findings))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    pointer: Pointer
    phrase: Phrase
    is_key: bool
    is_secret: bool


def _check_params(schema: JsonObject) -> None:
    for name, definition in schema["$defs"].items():
        if name.startswith(PARAMS):
            try:
                Draft202012Validator.check_schema(definition)
            except SchemaError as error:
                place = dotted(error.absolute_path) or "it"
                raise PluginError(
                    f"the params_schema of strategy {definition['title']!r} is not a JSON Schema: "
                    f"{place}: {error.message}",
                    hint="correct the params_schema in the plugin",
                ) from error


def _telling(error: ValidationError) -> ValidationError:
    """Return the error that tells most: of several forms, the one that nearly fits."""
    if error.context and all(_is_about_type(part) for part in error.context):
        types = [name for part in error.context for name in _as_list(part.validator_value)]
        error.validator, error.validator_value = "type", list(dict.fromkeys(types))
        return error
    return best_match([error]) or error


def _is_about_type(error: ValidationError) -> bool:
    return error.validator == "type" and not error.relative_path


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _find(source: Source, error: ValidationError, schema: JsonObject) -> _Finding:
    pointer: Pointer = tuple(error.absolute_path)
    place = pointer
    is_name = "propertyNames" in error.absolute_schema_path
    if is_name:
        place = pointer = (*pointer, str(error.instance))
    elif error.validator == "required":
        # Where nothing stands, its mapping's key does, or what took it away.
        place = (*pointer, error.message)
    is_secret = _is_secret(pointer, schema)
    raw = None if is_name else written(source, pointer)
    is_covered = is_secret or (not is_name and is_hidden(pointer, error.instance))
    refusal = refusal_of(error, pointer, raw, is_name=is_name, is_secret=is_covered)
    is_key = is_name or is_secret or refusal.keyword in _AT_THE_KEY
    return _Finding(pointer=place, phrase=phrase_of(refusal), is_key=is_key, is_secret=is_secret)


def refusal_of(
    error: ValidationError,
    pointer: Pointer,
    raw: str | None = None,
    *,
    is_name: bool = False,
    is_secret: bool = False,
) -> Refusal:
    """What `jsonschema` refused at that place, where the file has it written as `raw`."""
    keyword = str(error.validator)
    return Refusal(
        where=dotted(pointer[:-1] if is_name else pointer),
        parent=dotted(pointer[:-1]),
        name=error.message if keyword == "required" else str(pointer[-1] if pointer else ""),
        value=error.instance,
        raw=raw,
        keyword=keyword,
        rule=error.validator_value,
        schema=error.schema if isinstance(error.schema, dict) else {},
        is_param="params" in pointer[:-1],
        is_secret=is_secret,
    )


def _is_secret(pointer: Pointer, schema: JsonObject) -> bool:
    field = schema["properties"].get(pointer[0], {}) if pointer else {}
    return bool(field.get(NOTES, {}).get("secret"))


def _problem(source: Source, finding: _Finding) -> Problem:
    phrase = finding.phrase
    found = problem(
        source,
        finding.pointer,
        phrase.code,
        phrase.message,
        hint=phrase.hint,
        key=finding.is_key,
    )
    return _covered(found) if finding.is_secret else found


def _covered(found: Problem) -> Problem:
    """Cover all of the line but the key that the problem stands at."""
    start = found.column - 1
    parts = (found.snippet or "")[:start], (found.snippet or "")[start + found.length :]
    before, after = (re.sub(r"[^\s:{},]", "*", part) for part in parts)
    key = (found.snippet or "")[start : start + found.length]
    return replace(found, snippet=before + key + after)
