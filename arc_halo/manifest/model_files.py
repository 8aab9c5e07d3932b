"""The files a model declaration names: its architecture and its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from arc_halo.manifest import load
from arc_halo.manifest.documents import WeightsSource
from arc_halo.manifest.paths import PathRefusedError, contained
from arc_halo.manifest.problems import Found, Pointer, Problems
from arc_halo.plugins import PluginManager
from arc_halo.types import JsonObject


@dataclass(kw_only=True)
class ModelFiles:
    """Reads architectures, each file once, and locates weights without opening them."""

    directory: Path
    allow_paths: Sequence[Path]
    plugins: PluginManager
    problems: Problems
    architectures: dict[str, JsonObject | None] = field(default_factory=dict)

    @cached_property
    def roots(self) -> tuple[Path, ...]:
        """The directories that files may lie in, symlinks resolved."""
        return tuple(path.resolve() for path in (self.directory, *self.allow_paths))

    def architecture(self, found: Found) -> JsonObject | None:
        value = found.data.get("architecture", {})
        if not isinstance(value, str):
            return dict(value)
        # By the text as written: following links to a real path is what costs most here.
        if value in self.architectures:
            return self.architectures[value]
        path = self._path(found, ("architecture",), value)
        if path is None:
            return None
        self.architectures[value] = self._read_architecture(found, path, value)
        return self.architectures[value]

    def _read_architecture(self, found: Found, path: Path, label: str) -> JsonObject | None:
        try:
            if path.suffix in (".yaml", ".yml"):
                return dict(load.load_text(path.read_bytes(), path=path, label=label).data)
            value = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        except OSError as exc:
            self.problems.add(found, ("architecture",), "AH011", f"{label}: {exc.strerror}", None)
            return None
        except (ValueError, RecursionError) as exc:
            message = f"{label} is not JSON: {exc}"
            self.problems.add(found, ("architecture",), "AH011", message, None)
            return None
        if not isinstance(value, dict):
            self.problems.add(found, ("architecture",), "AH004", f"{label} is not a mapping", None)
            return None
        return value

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
            format=long.get("format") or self._format(found, pointer, long["source"]),
            roots=self.roots,
            codec=long.get("codec"),
            digest=bytes.fromhex(digest.removeprefix("sha256:")) if digest else None,
        )

    def _format(self, found: Found, pointer: Pointer, source: str) -> str:
        for name, provided in self.plugins.formats.items():
            if source.endswith(provided.item.suffixes):
                return name
        if not Path(source).suffix:
            return "safetensors"
        known = ", ".join(s for p in self.plugins.formats.values() for s in p.item.suffixes)
        message = f"no loaded plugin reads {Path(source).name!r}"
        self.problems.add(found, pointer, "AH032", message, f"readable are {known}")
        return "safetensors"

    def _path(self, found: Found, pointer: Pointer, text: str) -> Path | None:
        try:
            return contained(self.directory, text, self.allow_paths)
        except PathRefusedError as exc:
            self.problems.add(found, pointer, "AH012", str(exc), "see `--allow-path DIR`")
            return None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
