"""The sentences for what JSON Schema refuses: one function for each keyword, all pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from arc_halo.config import PROJECT_FILE
from arc_halo.manifest.report import shown
from arc_halo.manifest.scalars import ScalarError, read_plain
from arc_halo.names import did_you_mean
from arc_halo.sizes import format_count
from arc_halo.types import JsonObject

NOTES = "x-arc-halo"
"""The keyword of our schema that steers sentences.

It says noun, hint, code, spellings, project_fields and not.
"""


_SEE_SCHEMA = "`arc-halo schema` tells what may stand here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What was refused: `value` at `where` (its last part is `name`, the rest `parent`).

    `keyword` and `rule` refused it, of `schema`. `raw` is the value as the file writes it. The
    value of a secret is not named. It `is_param` where it is within the params of a strategy.
    """

    where: str
    parent: str
    name: str
    value: Any
    raw: str | None
    keyword: str
    rule: Any
    schema: JsonObject
    is_param: bool = False
    is_secret: bool = False

    @property
    def notes(self) -> Mapping[str, Any]:
        notes: Mapping[str, Any] = self.schema.get(NOTES, {})
        return notes

    @property
    def text(self) -> str:
        return "the value" if self.is_secret else value_text(self.value, self.raw)

    def phrase(self, code: str, message: str, hint: str) -> Phrase:
        prefix = f"{self.where}: " if self.where else ""
        return Phrase(code=code, message=prefix + message, hint=hint)


def phrase_of(refusal: Refusal) -> Phrase:
    """Return what to tell the user about a refusal."""
    return _PHRASES.get(refusal.keyword, _other)(refusal)


def dotted(pointer: Iterable[str | int]) -> str:
    """Return a pointer as messages write it: `reactors.story.members[0].weight`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_name(part)}" for part in pointer)
    return text.removeprefix(".")


def value_text(value: object, raw: str | None = None) -> str:
    """Return a scalar as a message names it; a number as the file writes it."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, int | float):
        return raw if raw is not None and _reading(raw) == value else _json(value)
    return "this"


def _unknown(refusal: Refusal) -> Phrase:
    field = shown(refusal.name)
    if refusal.name in refusal.notes.get("project_fields", ()):
        message = f"the field {field} belongs in the project file"
        return Phrase(code="AH003", message=message, hint=f"move it to {PROJECT_FILE}")
    place = f" in {refusal.parent}" if refusal.parent else ""
    meant = refusal.notes.get("spellings", {}).get(refusal.name)
    known = refusal.schema.get("properties", {})
    hint = f"write {meant}" if meant else _guess(refusal.name, known, "known are") or "remove it"
    return Phrase(code="AH003", message=f"unknown field {field}{place}", hint=hint)


def _missing(refusal: Refusal) -> Phrase:
    hint = refusal.notes.get("hint", f"add {refusal.name}:")
    return refusal.phrase("AH005", f"the field {shown(refusal.name)} is missing", hint)


def _type(refusal: Refusal) -> Phrase:
    types = [refusal.rule] if isinstance(refusal.rule, str) else list(refusal.rule)
    needed = " or ".join(_TYPES[name] for name in types)
    value = refusal.value
    if value is None or isinstance(value, dict | list):
        message = f"{_kind(value)} stands here, {needed} is needed"
    else:
        message = f"{refusal.text} is {_kind(value)}, {needed} is needed"
    if refusal.is_secret:
        return refusal.phrase("AH004", message, refusal.notes.get("hint", f"write {needed}"))
    pattern = refusal.schema.get("pattern", "")
    hint = _type_hint(set(types), value, refusal.raw or "", pattern)
    if refusal.is_param and isinstance(value, list):
        hint = _GRADIENT % refusal.name
    return refusal.phrase("AH004", message, hint or refusal.notes.get("hint", f"write {needed}"))


def _choice(refusal: Refusal) -> Phrase:
    rule = refusal.rule if refusal.keyword == "enum" else [refusal.rule]
    choices = [item if isinstance(item, str) else _json(item) for item in rule]
    noun = refusal.notes.get("noun")
    intro = "known are" if noun else "allowed are"
    meant = refusal.notes.get("spellings", {}).get(str(refusal.value).lower())
    hint = f"write {meant}" if meant else _guess(refusal.value, choices, intro)
    hint = hint or "`arc-halo plugins` lists what there is"
    code = refusal.notes.get("code", "AH006")
    return refusal.phrase(code, f"{refusal.text} is not {noun or 'allowed'}", hint)


def _form(refusal: Refusal) -> Phrase:
    noun = refusal.notes.get("noun", f"of the form {refusal.rule}")
    hint = refusal.notes.get("hint", f"write a text that is {noun}")
    return refusal.phrase("AH006", f"{refusal.text} is not {noun}", hint)


def _twice(refusal: Refusal) -> Phrase:
    return refusal.phrase("AH006", f"{refusal.text} stands twice in the list", "remove one of them")


def _range(refusal: Refusal) -> Phrase:
    sentence, advice = _RANGES[refusal.keyword]
    limit = _json(refusal.rule)
    return refusal.phrase("AH007", f"{refusal.text} is {sentence} {limit}", f"{advice} {limit}")


def _length(refusal: Refusal) -> Phrase:
    side, unit = _LENGTHS[refusal.keyword]
    size = len(refusal.value)
    has = f"has {format_count(size, unit)}" if size else "is empty"
    limit = f"{side} {format_count(refusal.rule, unit)}"
    return refusal.phrase("AH007", f"this {has}; it takes {limit}", f"write {limit}")


def _not(refusal: Refusal) -> Phrase:
    notes = refusal.notes.get("not", {})
    message = notes.get("message", f"{refusal.text} is not allowed")
    return refusal.phrase("AH006", message, notes.get("hint", _SEE_SCHEMA))


def _other(refusal: Refusal) -> Phrase:
    message = f"{refusal.text} fits none of the forms that are allowed"
    return refusal.phrase("AH006", message, _SEE_SCHEMA)


_PHRASES: dict[str, Callable[[Refusal], Phrase]] = {
    "additionalProperties": _unknown,
    "required": _missing,
    "type": _type,
    "enum": _choice,
    "const": _choice,
    "pattern": _form,
    "uniqueItems": _twice,
    "not": _not,
}
_RANGES = {
    "minimum": ("less than the minimum of", "write at least"),
    "maximum": ("greater than the maximum of", "write at most"),
    "exclusiveMinimum": ("not greater than", "write more than"),
    "exclusiveMaximum": ("not less than", "write less than"),
    "multipleOf": ("not a multiple of", "write a multiple of"),
}
_LENGTHS = {
    "minLength": ("at least", "character"),
    "maxLength": ("at most", "character"),
    "minItems": ("at least", "item"),
    "maxItems": ("at most", "item"),
    "minProperties": ("at least", "field"),
    "maxProperties": ("at most", "field"),
}
_PHRASES |= dict.fromkeys(_RANGES, _range) | dict.fromkeys(_LENGTHS, _length)
_TYPES = {
    "string": "a string",
    "number": "a number",
    "integer": "an integer",
    "boolean": "a boolean (true or false)",
    "object": "a mapping",
    "array": "a list",
    "null": "null",
}
_GRADIENT = 'values over the layers go into a rule: `tensors: [{match: "*", params: {%s: […]}}]`'
_TRUTHS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "a boolean"
    return "a string" if isinstance(value, str) else "a number"


def _type_hint(types: set[str], value: object, raw: str, pattern: str) -> str | None:
    if value is None:
        return "write a value, or remove the line"
    if isinstance(value, str):
        return _hint_for_text(types, value, raw)
    if "string" in types and isinstance(value, int | float) and raw and re.search(pattern, raw):
        return f'put quotes around it: "{raw}"'
    if "integer" in types and isinstance(value, float) and abs(value) < 2**53 and value % 1 == 0:
        return f"write {value:.0f}"
    return None


def _hint_for_text(types: set[str], value: str, raw: str) -> str | None:
    if types & _types_of(_reading(value)):
        is_variable = "${" in raw
        return (
            "a variable in quotes is text: give the field a line of its own, without quotes"
            if is_variable
            else "remove the quotes"
        )
    if "boolean" in types and value.lower() in _TRUTHS:
        return f"write {_TRUTHS[value.lower()]}"
    if types & {"number", "integer"} and (number := _loose_number(value)) is not None:
        return f"write {number}"
    return f"write a list: [{raw}]" if "array" in types and raw else None


def _types_of(value: object) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    return {"number"} if isinstance(value, float) else set()


def _loose_number(text: str) -> str | None:
    """Return a number that other YAML readers know (`1_000`, `010`, `.5`) as we read it."""
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)


def _reading(text: str) -> object:
    try:
        return read_plain(text)
    except ScalarError:
        return text


def _guess(value: object, known: Iterable[str], intro: str) -> str:
    names = sorted(known)
    if isinstance(value, str) and len(value) <= 100 and (hint := did_you_mean(value, names)):
        return hint
    return f"{intro} {', '.join(names[:20])}{', …' if len(names) > 20 else ''}" if names else ""


def _json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _name(part: str) -> str:
    return part if len(part) <= 80 and part.isprintable() else shown(part)
