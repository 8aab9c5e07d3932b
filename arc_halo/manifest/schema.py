"""The one schema of a manifest, plugins' params included, and the validation of sources by it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

from arc_halo.config import parse_size
from arc_halo.errors import InvalidInputError, Problem
from arc_halo.manifest.accept import PARAMS, Accepts, acceptor
from arc_halo.manifest.include import INCLUDED_FIELDS, SECTIONS
from arc_halo.manifest.load import Source, problem
from arc_halo.sizes import manifest_size
from arc_halo.types import JsonObject

REQUIRED_FIELDS: Final = ("version", "project")
AUTO: Final = "auto"
"""What stands for no codec in particular: the smallest of a dtype's usual ones."""

INT8: Final = "int8"
"""How blocks of the KV cache may be stored, too; it is no codec, since it loses something."""


def compose_schema(
    strategy_params: Mapping[str, JsonObject],
    codec_names: Sequence[str],
    body_stores: Sequence[str] = ("postgres",),
    runner_params: Mapping[str, JsonObject] = MappingProxyType({}),
) -> JsonObject:
    """Return the JSON Schema (2020-12) of a manifest for these strategies, codecs and runners.

    Editors and `arc-halo schema` use it as it is. A strategy's params schema stands in it once
    and holds for `params` beside `uses: NAME` and, in a reactor, beside `strategy: NAME`; a
    runner's for `params` beside `uses: NAME` in `runner`.
    """
    schema: JsonObject = json.loads(_base_text())
    definitions = schema["$defs"]
    definitions["codec"]["enum"] = sorted([*codec_names, AUTO])
    definitions["block_codec"]["enum"] = sorted([*codec_names, INT8])
    definitions["body_store"]["enum"] = sorted(body_stores)
    definitions["strategy_name"]["enum"] = sorted(strategy_params)
    definitions["runner_name"]["enum"] = sorted(runner_params)
    _add_params(definitions, strategy_params, {"strategy": "uses", "reactor": "strategy"})
    _add_params(definitions, runner_params, {"runner": "uses"})
    return schema


def _add_params(
    definitions: JsonObject, schemas: Mapping[str, JsonObject], fields: Mapping[str, str]
) -> None:
    """Have `params` fit the schema of what the field of each kind names."""
    for name, params in sorted(schemas.items()):
        place = f"{PARAMS}{sum(each.startswith(PARAMS) for each in definitions)}"
        own = {key: value for key, value in params.items() if key not in ("$schema", "$id")}
        definitions[place] = {"title": name, **_moved(own, f"#/$defs/{place}")}
        for kind, field in fields.items():
            rule = _params_rule(field, name, f"#/$defs/{place}", bool(params.get("required")))
            definitions[kind].setdefault("allOf", []).append(rule)


def validate(sources: Sequence[Source], schema: JsonObject) -> list[Problem]:
    """Return every problem that `sources` have by a composed schema, sorted by file and place."""
    accepts = acceptor(schema)
    problems = [found for source in sources for found in _source_problems(source, schema, accepts)]
    return sorted(problems, key=lambda p: (p.file, p.line, p.column, p.code))


@lru_cache(maxsize=1)
def _base_text() -> str:
    return (files("arc_halo") / "schemas" / "manifest.schema.json").read_text("utf-8")


def _moved(value: Any, root: str) -> Any:
    """Copy a schema for its new place, so that its references to itself still lead there."""
    if isinstance(value, dict):
        return {
            key: root + part[1:]
            if key == "$ref" and isinstance(part, str) and part.startswith("#")
            else _moved(part, root)
            for key, part in value.items()
        }
    return [_moved(part, root) for part in value] if isinstance(value, list) else value


def _params_rule(field: str, name: str, reference: str, is_required: bool) -> JsonObject:
    then: JsonObject = {"properties": {"params": {"$ref": reference}}}
    if is_required:
        then["required"] = ["params"]
    return {"if": {"properties": {field: {"enum": [name]}}, "required": [field]}, "then": then}


def _source_problems(source: Source, schema: JsonObject, accepts: Accepts) -> Iterator[Problem]:
    if not (_has_its_fields(source) and accepts(source.data)):
        from arc_halo.manifest.explain import explain

        yield from explain(source, _doubtful_parts(source, schema, accepts), schema)
    yield from _size_problems(source, schema)


def _has_its_fields(source: Source) -> bool:
    if source.included:
        return source.data.keys() <= set(INCLUDED_FIELDS)
    return all(field in source.data for field in REQUIRED_FIELDS)


def _doubtful_parts(
    source: Source, schema: JsonObject, accepts: Accepts
) -> Iterator[tuple[JsonObject, JsonObject]]:
    """Give the parts of a source that may have problems, each with the schema it is to fit.

    Lazily, and without the resources that are fine, however many they are.
    """
    role = _role_schema(source, schema)
    sections = {
        name: value
        for name, value in source.data.items()
        if name in SECTIONS and isinstance(value, dict)
    }
    yield {name: value for name, value in source.data.items() if name not in sections}, role
    role = {key: value for key, value in role.items() if key != "required"}
    for name, section in sections.items():
        for key, resource in section.items():
            part = {name: {key: resource}}
            if not accepts(part):
                yield part, role


def _role_schema(source: Source, schema: JsonObject) -> JsonObject:
    """Return the schema for a project file or for an included one; editors cannot tell them."""
    role = {key: value for key, value in schema.items() if key not in ("if", "then")}
    if not source.included:
        return {**role, "required": list(REQUIRED_FIELDS)}
    fields = {name: schema["properties"][name] for name in INCLUDED_FIELDS}
    others = sorted(schema["properties"].keys() - fields.keys())
    return {**role, "properties": fields, "x-arc-halo": {"project_fields": others}}


def _size_problems(source: Source, schema: JsonObject) -> Iterator[Problem]:
    """Check sizes, whose range JSON Schema cannot tell where they have a unit."""
    definitions = schema["$defs"]
    for pointer, values, kind in _parts_with_sizes(source.data):
        for name, field in definitions[kind]["properties"].items():
            bounds = field.get("x-arc-halo", {}).get("bytes")
            if not isinstance(values, dict) or name not in values:
                continue
            if bounds:
                yield from _size_problem(source, (*pointer, name), values[name], *bounds)
            each = field.get("additionalProperties")
            if isinstance(each, dict) and isinstance(values[name], dict):
                for key, value in values[name].items():
                    if of_each := each.get("x-arc-halo", {}).get("bytes"):
                        yield from _size_problem(source, (*pointer, name, key), value, *of_each)


def _parts_with_sizes(data: JsonObject) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """The parts of a file that may hold sizes: where each stands, what it is, its definition."""
    for section in ("storage", "settings"):
        yield (section,), data.get(section), section
    trainings = data.get("training")
    for name, training in trainings.items() if isinstance(trainings, dict) else ():
        if isinstance(training, dict):
            yield ("training", name, "logging"), training.get("logging"), "logging"
    caches = data.get("inference")
    for name, cache in caches.items() if isinstance(caches, dict) else ():
        kind = "kv_cache" if name == "kv_cache" else "capture_cache"
        yield ("inference", str(name)), cache, kind


def _size_problem(
    source: Source, pointer: tuple[str, ...], value: object, low: int, high: int
) -> Iterator[Problem]:
    if not isinstance(value, int | str) or isinstance(value, bool):
        return
    try:
        size = parse_size(str(value))
    except InvalidInputError:
        return  # the schema's pattern says so
    if isinstance(value, int) and value < 1:
        return  # so does its minimum
    if not low <= size <= high:
        lowest, highest = manifest_size(low), manifest_size(high)
        side = f"less than {lowest}" if size < low else f"more than {highest}"
        message = f"{'.'.join(pointer)}: {value} is {side}"
        hint = f"write a size from {lowest} to {highest}"
        yield problem(source, pointer, "AH007", message, hint=hint)
