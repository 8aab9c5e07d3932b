"""A mergekit document, read: its models, its slices, and which settings hold where.

`models:` are one slice of all layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from arc_halo.manifest import mergekit_tokenizers as tokenizers
from arc_halo.manifest.mergekit_methods import INERT, METHODS, Method
from arc_halo.manifest.mergekit_settings import Chain, Refuse, chain, choices
from arc_halo.types import JsonObject

KNOWN = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype",
    *tokenizers.FIELDS,
)  # fmt: skip
WHY = {"modules": "a merge for each module", "chat_template": "chat templates are not merged"}
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model in a slice, by the name it gets, and which of its layers are taken."""

    model: str
    where: str
    parameters: JsonObject
    layers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A slice."""

    where: str
    sources: tuple[Source, ...]
    parameters: JsonObject = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class MergekitDocument:
    """What a document says. `models` are names by path; `members` those that are fused."""

    method: str
    base: str | None
    parts: Sequence[Part]
    is_sliced: bool
    members: Sequence[str]
    models: Mapping[str, str]
    parameters: JsonObject
    refuse: Refuse
    out_dtype: str | None = None
    compute: str | None = None
    tokenizer: str | JsonObject | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def made(self) -> list[range]:
        """The layers of the result that each slice makes."""
        found: list[range] = []
        for part in self.parts:
            first, end = next((s.layers for s in part.sources if s.layers), (0, 0))
            start = found[-1].stop if found else 0
            found.append(range(start, start + end - first))
        return found

    def shared_chain(self, part: Part, name: str) -> Chain:
        """A parameter that the slice may set, and the top. Filters are of the result's names."""
        return chain(self._choices(part.parameters, part.where, name), self._top(name))

    def own_chain(self, part: Part, source: Source, name: str) -> Chain:
        """A parameter that each model may have. Filters are of the model's names."""
        found = chain(
            self._choices(source.parameters, source.where, name),
            self._choices(part.parameters, part.where, name),
            self._top(name),
        )
        moved = source.layers and source.layers[0] != self.made[self.parts.index(part)].start
        for choice in found:
            if moved and choice.is_numbered:
                self.refuse(
                    f"{source.where}: {name}: the filter {choice.filter!r} names a layer, and the "
                    "slice moves it"
                )
        return found

    def _top(self, name: str) -> Chain:
        return self._choices(self.parameters, "", name)

    def _choices(self, parameters: JsonObject, where: str, name: str) -> Chain:
        if name not in parameters:
            return ()
        place = f"{where}.parameters.{name}".removeprefix(".")
        return choices(parameters[name], place, self.refuse)


def read_document(document: Mapping[str, Any], refuse: Refuse) -> MergekitDocument | None:
    """The document, as far as it can be read; what is wrong goes to `refuse`."""
    for key in document:
        if key not in KNOWN:
            refuse(f"{key}: {WHY.get(key, 'it is unknown')}")
    method = document.get("merge_method")
    if not isinstance(method, str) or method not in METHODS:
        refuse(f"merge_method: {method!r} is none of {', '.join(METHODS)}")
        return None
    reading = _Reading(METHODS[method], method, refuse)
    return reading.read(document)


class _Reading:
    def __init__(self, method: Method, name: str, refuse: Refuse) -> None:
        self._method = method
        self._method_name = name
        self._refuse = refuse
        self._names: dict[str, str] = {}
        self._notes: list[str] = []

    def read(self, document: Mapping[str, Any]) -> MergekitDocument | None:
        base = self._base(document, "base_model", None)
        is_sliced = document.get("slices") is not None
        if is_sliced == (document.get("models") is not None):
            self._refuse("models, slices: one of them is needed")
            return None
        parts = list(self._slices(document, base) if is_sliced else self._whole(document, base))
        if base is None and self._method.base in ("first", "needed"):
            self._refuse(f"base_model: {self._method_name} needs one")
        if is_sliced and parts and len(parts[-1].sources) > len(parts[0].sources):
            self._notes.append(
                "slices: the last one has more models than the first; mergekit fuses what follows "
                "the layers of as many as the first has, the manifest of all of the last"
            )
        members = self._members(parts, base)
        tokenizer = tokenizers.vocabulary(document, members, base, self._model, self._refuse)
        return MergekitDocument(
            method=self._method_name,
            base=base,
            parts=parts,
            is_sliced=is_sliced,
            members=members,
            tokenizer=tokenizer,
            models=self._names,
            parameters=self._parameters(document, "", self._method.parameters),
            refuse=self._refuse,
            out_dtype=self._dtype(document),
            compute="F64" if document.get("dtype") == "float64" else None,
            notes=self._notes,
        )

    def _whole(self, document: Mapping[str, Any], base: str | None) -> Iterator[Part]:
        sources = list(self._sources(document["models"], "models", keys=("model", "parameters")))
        if not sources:
            self._refuse("models: a list of models is needed")
        # Theirs adds the base to the models, whatever the method makes of it.
        if base is not None and all(source.model != base for source in sources):
            added = Source(model=base, where="base_model", parameters={})
            sources.insert(0 if self._method.base == "first" else len(sources), added)
        yield Part(where="", sources=tuple(sources))

    def _slices(self, document: Mapping[str, Any], base: str | None) -> Iterator[Part]:
        listed = document["slices"]
        if not isinstance(listed, list) or not listed:
            self._refuse("slices: a list of slices is needed")
            return
        for index, each in enumerate(listed):
            where = f"slices[{index}]"
            if not isinstance(each, dict):
                self._refuse(f"{where}: it is no mapping")
                continue
            self._check_keys(each, where, ("sources", "parameters", "base_model"))
            keys = ("model", "layer_range", "parameters")
            sources = tuple(self._sources(each.get("sources"), f"{where}.sources", keys=keys))
            self._check_slice(each, where, sources, base)
            parameters = self._parameters(each, where, self._method.parameters)
            yield Part(where=where, sources=sources, parameters=parameters)

    def _check_slice(
        self, each: JsonObject, where: str, sources: Sequence[Source], base: str | None
    ) -> None:
        if not sources:
            self._refuse(f"{where}.sources: a list of models is needed")
            return
        lengths = {s.layers[1] - s.layers[0] for s in sources if s.layers}
        if len(lengths) > 1:
            self._refuse(f"{where}: as many layers are needed of each model")
        if self._method.base == "member":
            return
        own = self._base(each, f"{where}.base_model", base)
        if own != base:
            self._refuse(f"{where}.base_model: slices have different ones")
        elif base is not None and all(source.model != base for source in sources):
            self._refuse(f"{where}.sources: the base model is not among them")

    def _sources(self, listed: object, where: str, keys: Sequence[str]) -> Iterator[Source]:
        seen: set[str] = set()
        for index, each in enumerate(listed if isinstance(listed, list) else ()):
            place = f"{where}[{index}]"
            if not isinstance(each, dict):
                self._refuse(f"{place}: it is no mapping")
                continue
            self._check_keys(each, place, keys)
            name = self._model(each.get("model"), f"{place}.model")
            if name in seen:
                self._refuse(f"{place}.model: it stands there twice")
            elif name is not None:
                seen.add(name)
                yield Source(
                    model=name,
                    where=place,
                    parameters=self._parameters(each, place, self._method.own),
                    layers=self._span(each, place) if "layer_range" in keys else None,
                )

    def _span(self, each: JsonObject, where: str) -> tuple[int, int] | None:
        match each.get("layer_range"):
            case [int(first), int(end)] if 0 <= first < end:
                return first, end
        self._refuse(f"{where}.layer_range: [first, end] is needed, of one layer or more")
        return None

    def _members(self, parts: Sequence[Part], base: str | None) -> list[str]:
        found = list(dict.fromkeys(source.model for part in parts for source in part.sources))
        if base in found and self._method.base != "member":
            found.remove(base)
        # Theirs goes from the base to the other one, and has no base beside.
        return [base, *found] if base is not None and self._method.base == "first" else found

    def _parameters(
        self, holder: Mapping[str, Any], where: str, looked: Sequence[str]
    ) -> JsonObject:
        """Those of a document, slice or model, of which the method looks for some there."""
        found = holder.get("parameters") or {}
        where = f"{where}.parameters".removeprefix(".")
        if not isinstance(found, dict):
            self._refuse(f"{where}: it is no mapping")
            return {}
        for key in found:
            if key not in (*self._method.parameters, *self._method.inert, *INERT):
                self._refuse(f"{where}.{key}: {self._method_name} has no such parameter")
            elif key in self._method.shared and key not in looked:
                self._notes.append(
                    f"{where}.{key}: passed over; mergekit looks for it above models"
                )
        return found

    def _check_keys(self, each: JsonObject, where: str, known: Sequence[str]) -> None:
        for key in each:
            if key not in known:
                self._refuse(f"{where}.{key}: it is unknown")

    def _dtype(self, document: Mapping[str, Any]) -> str | None:
        found = None
        for key in ("dtype", "out_dtype"):
            name = document.get(key)
            if name is None:
                continue
            if name not in DTYPES:
                self._refuse(f"{key}: {name!r} is none of {', '.join(DTYPES)}")
            found = DTYPES.get(name)
        if document.get("dtype") in ("float16", "bfloat16"):
            self._notes.append(
                "dtype: merges are computed in float32 and rounded once, when they are written"
            )
        return found

    def _base(self, holder: Mapping[str, Any], where: str, above: str | None) -> str | None:
        named = holder.get("base_model")
        return above if named is None else self._model(named, where)

    def _model(self, reference: object, where: str) -> str | None:
        """The name that a model gets."""
        if not isinstance(reference, str) or not reference:
            self._refuse(f"{where}: only the path of a model can be written")
            return None
        path, adapter, _ = reference.partition("+")
        if adapter:
            self._refuse(f"{where}: a LoRA adapter is added to it ({reference})")
        path, revision, _ = path.partition("@")
        if revision:
            self._refuse(f"{where}: a revision is named ({reference})")
        if path not in self._names:
            self._names[path] = _free_name(path, set(self._names.values()))
        return self._names[path]


def _free_name(path: str, taken: set[str]) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", PurePosixPath(path).name.lower()).strip("-._")
    name = name[:100] or "model"
    number = 2
    while (found := name if number == 2 else f"{name}-{number - 1}") in taken:
        number += 1
    return found
