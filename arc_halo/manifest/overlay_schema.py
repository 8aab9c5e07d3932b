"""The JSON Schema of overlays, for editors: that of manifests, nothing required, null allowed."""

from __future__ import annotations

from typing import Any, Final

from arc_halo.manifest.accept import PARAMS
from arc_halo.manifest.include import SECTIONS
from arc_halo.manifest.overlays import PROJECT_FIELDS
from arc_halo.types import JsonObject

_PATCH: Final = "patch_"
_DEFINITIONS: Final = "#/$defs/"
# What holds of the whole only, which a patch is not; `default` would mislead.
_OF_THE_WHOLE: Final = ("required", "minProperties", "if", "then", "else", "default")


def overlay_schema(schema: JsonObject) -> JsonObject:
    """Return the schema of overlays of manifests that fit a composed `schema`.

    What params a strategy takes is not told: an overlay need not say which strategy it is.
    """
    definitions = schema["$defs"]
    patches = {
        _PATCH + name: _patch(definition)
        for name, definition in definitions.items()
        if not name.startswith(PARAMS)
    }
    fields = schema["properties"]
    return {
        "$schema": schema["$schema"],
        "$id": "urn:arc-halo:overlay:1",
        "title": "Arc-Halo overlay",
        "description": "What an environment changes: overlays/NAME.yaml.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **{name: _patch(fields[name]) for name in SECTIONS},
            **{name: _or_null(fields[name]) for name in PROJECT_FIELDS},
        },
        "$defs": {**definitions, **patches},
    }


def _patch(schema: Any) -> Any:
    """The schema of patches of values that fit `schema`; lists are replaced, so theirs stay."""
    if not isinstance(schema, dict):
        return schema
    patch: JsonObject = {key: value for key, value in schema.items() if key not in _OF_THE_WHOLE}
    for key in ("properties", "patternProperties"):
        if key in patch:
            patch[key] = {name: _or_null(inner) for name, inner in patch[key].items()}
    if isinstance(patch.get("additionalProperties"), dict):
        patch["additionalProperties"] = _or_null(patch["additionalProperties"])
    for key in ("allOf", "anyOf", "oneOf"):
        if key in patch:
            patch[key] = [_patch(inner) for inner in patch[key]]
    if "$ref" in patch:
        patch["$ref"] = _DEFINITIONS + _PATCH + patch["$ref"].removeprefix(_DEFINITIONS)
    return patch


def _or_null(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    told = {key: schema[key] for key in ("title", "description") if key in schema}
    return {**told, "anyOf": [_patch(schema), {"type": "null"}]}
