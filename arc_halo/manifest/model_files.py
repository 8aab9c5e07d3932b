"""The files a model declaration names: its architecture and its weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from arc_halo.errors import InvalidInputError, ManifestError
from arc_halo.formats.finding import USUAL, format_of_directory, format_of_name
from arc_halo.manifest import load
from arc_halo.manifest.documents import TokenizerSource, WeightsSource, canonical
from arc_halo.manifest.paths import PathRefusedError, contained
from arc_halo.manifest.problems import Found, Pointer, Problems
from arc_halo.manifest.report import MAX_DEPTH
from arc_halo.names import did_you_mean
from arc_halo.plugins import PluginManager
from arc_halo.types import JsonObject


@dataclass(kw_only=True)
class ModelFiles:
    """Reads architectures, each file once, and locates weights without opening them.

    `digests` has the SHA-256 of the files of architectures, `tokenizers` what else is named.
    """

    directory: Path
    allow_paths: Sequence[Path]
    plugins: PluginManager
    problems: Problems
    architectures: dict[str, JsonObject | None] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    digests: dict[str, bytes] = field(default_factory=dict)
    tokenizers: set[str] = field(default_factory=set)

    @cached_property
    def roots(self) -> tuple[Path, ...]:
        """The directories that files may lie in, symlinks resolved."""
        return tuple(path.resolve() for path in (self.directory, *self.allow_paths))

    def architecture(self, found: Found) -> JsonObject | None:
        """A model's architecture, inline or from its file; None when it has a problem."""
        value = found.data.get("architecture", {})
        if not isinstance(value, str):
            return dict(value)
        # By the text as written: following links to a real path is what costs most here.
        if value not in self.architectures and found.name not in self.refused:
            self._load(found, value)
        return self.architectures.get(value)

    def _load(self, found: Found, label: str) -> None:
        path = self._path(found, ("architecture",), label)
        if path is None:
            self.refused.add(found.name)
            return
        try:
            raw = _read(path, label)
            self.digests[label] = hashlib.sha256(raw).digest()
            self.architectures[label] = parse_architecture(raw, path, label)
        except ManifestError as exc:
            self.architectures[label] = None
            self.problems.listed.extend(exc.problems)
        except InvalidInputError as exc:
            self.architectures[label] = None
            self.problems.add(found, ("architecture",), exc.error_code, exc.message, exc.hint)

    def weights(self, found: Found) -> WeightsSource | None:
        value = found.data.get("weights")
        if value is None:
            return None
        long: JsonObject = {"source": value} if isinstance(value, str) else value
        pointer: Pointer = ("weights",) if isinstance(value, str) else ("weights", "source")
        path = self._path(found, pointer, long["source"])
        if path is None:
            return None
        digest = long.get("digest")
        return WeightsSource(
            path=path,
            label=long["source"],
            format=self._format(found, pointer, long),
            roots=self.roots,
            codec=long.get("codec"),
            digest=bytes.fromhex(digest.removeprefix("sha256:")) if digest else None,
        )

    def tokenizer(self, found: Found) -> TokenizerSource | None:
        if (label := found.data.get("tokenizer")) is None:
            return None
        path = self._path(found, ("tokenizer",), label)
        self.tokenizers.add(label)
        return None if path is None else TokenizerSource(path=path, label=label)

    def _format(self, found: Found, pointer: Pointer, weights: JsonObject) -> str:
        source: str = weights["source"]
        if (named := weights.get("format")) is not None:
            if named not in self.plugins.formats:
                hint = did_you_mean(named, self.plugins.formats)
                message = f"no loaded plugin provides the weight format {named!r}"
                self.problems.add(found, ("weights", "format"), "AH032", message, hint)
            return str(named)
        formats = {name: provided.item for name, provided in self.plugins.formats.items()}
        path = self.directory / source
        # A directory may be absent where its weights are recorded: then it is of the usual format.
        if path.is_dir() or not path.suffix:
            return (format_of_directory(path, formats) if path.is_dir() else None) or USUAL
        if (found_name := format_of_name(path.name, formats)) is not None:
            return found_name
        known = ", ".join(s for p in self.plugins.formats.values() for s in p.item.suffixes)
        message = f"no loaded plugin reads {Path(source).name!r}"
        self.problems.add(found, pointer, "AH032", message, f"readable are {known}")
        return USUAL

    def _path(self, found: Found, pointer: Pointer, text: str) -> Path | None:
        try:
            return contained(self.directory, text, self.allow_paths)
        except PathRefusedError as exc:
            self.problems.add(found, pointer, "AH012", str(exc), exc.hint)
            return None


def read_architecture(path: Path, label: str) -> JsonObject:
    """The mapping in a JSON or YAML file. Raises `InvalidInputError`, or a YAML file's own."""
    return parse_architecture(_read(path, label), path, label)


def parse_architecture(raw: bytes, path: Path, label: str) -> JsonObject:
    """The mapping that the bytes of such a file are. Raises as `read_architecture` does."""
    if path.suffix in (".yaml", ".yml"):
        return dict(load.load_text(raw, path=path, label=label).data)
    try:
        value = json.loads(raw, parse_constant=_refuse_constant)
        _check_storable(value)
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(f"{label} cannot be used: {exc}", code="AH011") from exc
    if not isinstance(value, dict):
        raise InvalidInputError(f"{label} is not a mapping", code="AH004")
    return value


def _read(path: Path, label: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InvalidInputError(f"{label}: {exc.strerror}", code="AH011") from exc


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _check_storable(value: object) -> None:
    """Refuse what JSON can write and the database's jsonb cannot hold, or nobody means."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    if _NUL.search(canonical(value)):
        raise ValueError("it holds a NUL character")


_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
