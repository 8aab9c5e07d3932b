"""Overlays: what an environment changes in a manifest, a merge patch by name (RFC 7386).

`null` takes away, mappings are merged, all else is replaced as a whole. A patch that matches
nothing is a problem, so that what was renamed or removed does not go on in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from arc_halo.errors import Problem
from arc_halo.manifest.include import OVERLAYS, SECTIONS, PathError
from arc_halo.manifest.paths import PathRefusedError, contained
from arc_halo.manifest.positions import Pointer, locate, problem, written
from arc_halo.manifest.report import shown
from arc_halo.names import did_you_mean

if TYPE_CHECKING:
    from arc_halo.manifest.load import Source

PROJECT_FIELDS: Final = ("database", "storage", "settings")
"""What an overlay may change besides resources."""

_KEPT = {
    "version": "the project file says it for all environments",
    "project": "environments are one project; give each a database of its own",
    "include": "include it in the project file, and take away here what is not wanted",
    "plugins": "plugins are code: list them in the project file, for all environments",
}


def overlay_label(environment: str) -> str:
    """How messages call the overlay of an environment."""
    return f"{OVERLAYS}/{environment}.yaml"


def find_overlay(
    directory: Path, environment: str, allow_paths: Sequence[Path] = ()
) -> tuple[Path, str]:
    """Return the overlay of an environment, and its label. Raises `PathError`."""
    label = overlay_label(environment)
    try:
        contained(directory, label, allow_paths)
    except PathRefusedError as error:
        raise PathError("AH012", str(error), error.hint) from error
    if not (directory / label).is_file():
        there = sorted(path.stem for path in (directory / OVERLAYS).glob("*.yaml"))
        hint = did_you_mean(environment, there) or (
            f"there are {', '.join(there)}" if there else f"there is no overlay in {OVERLAYS}/"
        )
        raise PathError("AH011", f"there is no environment {shown(environment)}", hint)
    return directory / label, label


def merge_overlay(sources: Sequence[Source], overlay: Source) -> tuple[list[Source], list[Problem]]:
    """Change the data of `sources` as the overlay says; return them, and every problem.

    What they return with knows which of its values are the overlay's.
    """
    merger = _Merger(sources, overlay)
    merger.merge()
    merged = [
        replace(source, overlay=overlay, patched=patched)
        for source, patched in zip(sources, merger.patched, strict=True)
    ]
    return merged, merger.problems


def merged(value: Any, patch: Any) -> Any:
    """Return what a patch makes of a value, as RFC 7386 defines it; nothing is shared."""
    if not isinstance(patch, dict):
        return _copy(patch)
    kept = dict(value) if isinstance(value, dict) else {}
    for name, part in patch.items():
        if part is None:
            kept.pop(name, None)
        else:
            kept[name] = merged(kept.get(name), part)
    return kept


class _Merger:
    """Applies one overlay to files that are known to be YAML, valid or not."""

    def __init__(self, sources: Sequence[Source], overlay: Source) -> None:
        self.problems: list[Problem] = []
        self.patched: list[dict[Pointer, Pointer]] = [{} for _ in sources]
        self._sources = sources
        self._overlay = overlay

    def merge(self) -> None:
        for field, patch in self._overlay.data.items():
            if field in SECTIONS:
                self._section(field, patch)
            elif field in PROJECT_FIELDS:
                self._patch(0, self._sources[0].data, (field,), (field,), patch)
            else:
                self._refuse_field(field)

    def _section(self, section: str, patches: Any) -> None:
        if not isinstance(patches, dict):
            message = f"{section}: an overlay changes resources by name"
            hint = f"write a mapping, `{section}: {{NAME: …}}`; `NAME: null` takes one away"
            self._problem((section,), "AH004", message, hint)
            return
        declared = dict(self._declared(section))
        taken: dict[str, str] = {}
        for name, patch in patches.items():
            place = (section, name)
            found = self._find(section, name, declared)
            if found is None:
                continue
            if found in taken:
                line = locate(self._overlay, (section, taken[found])).line
                message = f"{section}.{found} is changed twice, by {shown(name)} too"
                hint = f"it is first changed on line {line}"
                self._problem(place, "AH013", message, hint, key=True)
                continue
            taken[found] = name
            index = declared[found]
            resources = self._sources[index].data[section]
            self._patch(index, resources, (section, found), place, patch)

    def _declared(self, section: str) -> Iterator[tuple[str, int]]:
        """The names of a section, each with its file; a name declared twice is told of later."""
        for index, source in reversed(list(enumerate(self._sources))):
            resources = source.data.get(section)
            if isinstance(resources, dict):
                yield from ((name, index) for name in resources)

    def _find(self, section: str, name: str, declared: Mapping[str, int]) -> str | None:
        if name in declared:
            return name
        others = self._other_forms(name, declared) if section == "models" else []
        if len(others) == 1:
            return others[0]
        if others:
            message = f"models.{name} may be any of {', '.join(sorted(others))}"
            self._problem((section, name), "AH022", message, "write the one you mean", key=True)
        else:
            message = f"{section}.{name} is not declared, so there is nothing to change"
            self._problem((section, name), "AH028", message, self._guess(section, name), key=True)
        return None

    def _other_forms(self, key: str, declared: Mapping[str, int]) -> list[str]:
        """The models that `key` means, whose version stands in another place."""
        name, at, version = key.partition("@")
        if not at:
            return [each for each in declared if each.partition("@")[0] == name]
        if name not in declared:
            return []
        resource = self._sources[declared[name]].data["models"].get(name)
        is_it = isinstance(resource, dict) and resource.get("version") == version
        return [name] if is_it else []

    def _guess(self, section: str, name: str) -> str:
        declared = sorted(name for name, _ in self._declared(section))
        bare = name.partition("@")[0]
        if section == "models" and (reactor := self._producer(bare)):
            return f"it is what a merge produces: change reactors.{reactor}.produces"
        versions = [each for each in declared if each.partition("@")[0] == bare]
        if versions:
            return f"did you mean '{versions[-1]}'?"
        if hint := did_you_mean(name, declared):
            return hint
        for other in SECTIONS:
            if name in dict(self._declared(other)):
                return f"there is {other}.{name}; did you mean that?"
        some = f"declared are {', '.join(declared[:20])}{', …' if len(declared) > 20 else ''}"
        return some if declared else "declare it in a file of the project, for all environments"

    def _producer(self, name: str) -> str | None:
        for reactor, index in self._declared("reactors"):
            data = self._sources[index].data["reactors"][reactor]
            produces = data.get("produces") if isinstance(data, dict) else None
            if isinstance(produces, dict) and produces.get("model") == name:
                return reactor
        return None

    def _patch(
        self, index: int, target: dict[str, Any], pointer: Pointer, place: Pointer, patch: Any
    ) -> None:
        """Change the value that `target` has under the last part of `pointer`."""
        name = str(pointer[-1])
        value = target.get(name)
        if patch is None:
            self._remove(index, target, pointer, place)
        elif isinstance(patch, dict) and isinstance(value, dict):
            for key, part in patch.items():
                self._patch(index, value, (*pointer, key), (*place, key), part)
        else:
            for nothing in _nulls(patch, place):
                self._refuse_null(nothing)
            target[name] = _copy(patch)
            self.patched[index][pointer] = place

    def _remove(self, index: int, target: dict[str, Any], pointer: Pointer, place: Pointer) -> None:
        name = str(pointer[-1])
        if name not in target:
            self._refuse_null(place, target)
        elif written(self._overlay, place) == "":
            message = f"nothing stands here; {'.'.join(map(str, place))} would be taken away"
            self._problem(place, "AH004", message, "if that is meant, write `null`", key=True)
        else:
            del target[name]
            self.patched[index][pointer] = place

    def _refuse_null(self, place: Pointer, known: Mapping[str, Any] | None = None) -> None:
        message = f"{'.'.join(map(str, place))} is not there, so it cannot be taken away"
        hint = did_you_mean(str(place[-1]), known or ()) or "remove the line"
        self._problem(place, "AH028", message, hint, key=True)

    def _refuse_field(self, field: str) -> None:
        if field in _KEPT:
            message = f"an overlay may not change {shown(field)}"
            self._problem((field,), "AH003", message, _KEPT[field], key=True)
            return
        known = (*SECTIONS, *PROJECT_FIELDS)
        hint = did_you_mean(field, known) or f"known are {', '.join(known)}"
        self._problem((field,), "AH003", f"unknown field {shown(field)}", hint, key=True)

    def _problem(
        self, place: Pointer, code: str, message: str, hint: str, *, key: bool = False
    ) -> None:
        self.problems.append(problem(self._overlay, place, code, message, hint=hint, key=key))


def _nulls(value: Any, place: Pointer) -> Iterator[Pointer]:
    """Where a patch takes away something of what it makes anew. Within lists null is a value."""
    if isinstance(value, dict):
        for key, part in value.items():
            if part is None:
                yield (*place, key)
            else:
                yield from _nulls(part, (*place, key))


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value
