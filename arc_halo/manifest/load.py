"""Loading a project's YAML files: read, parsed, variables expanded, includes and overlay merged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from arc_halo.config import PROJECT_FILE
from arc_halo.errors import ManifestError, Problem
from arc_halo.manifest.include import PathError, find_included
from arc_halo.manifest.overlays import find_overlay, merge_overlay, overlay_label
from arc_halo.manifest.parse import parse
from arc_halo.manifest.positions import (
    Lines,
    Pointer,
    Position,
    home,
    locate,
    no_garbage_collection,
    problem,
    problem_at,
)
from arc_halo.manifest.variables import NotedVariables

__all__ = ["Position", "Source", "home", "load_project", "load_text", "locate", "problem"]

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MAX_INCLUDES: Final = 1000
"""Items of `include` that are followed; the schema refuses more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One YAML file as loaded.

    `path` is absolute, `label` is how messages name it, `digest` is the SHA-256 of its bytes;
    `included` tells it from the project file. `data` shares no container with anything.

    With an `overlay`, `patched` has the pointers of `data` whose values are from there, or were
    taken away there, each with its pointer in the overlay. A project file has the `variables`
    that all files used, None for one without a value, and the directories that `include` was
    `looked_up_in`, which need not be there.
    """

    path: Path
    label: str
    text: str
    data: dict[str, Any]
    digest: bytes
    included: bool = False
    overlay: Source | None = None
    patched: Mapping[Pointer, Pointer] = field(default_factory=dict)
    variables: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    looked_up_in: frozenset[Path] = frozenset()


def load_text(text: str | bytes, *, path: Path, label: str) -> Source:
    """Return the source that `text` is, as it stands: variables are not expanded.

    Raises `ManifestError` with all its problems.
    """
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    with no_garbage_collection():
        source, problems = _source(raw, path, label)
    if problems:
        raise ManifestError(problems)
    return source


def load_project(
    path: Path,
    *,
    env: Mapping[str, str],
    allow_paths: Sequence[Path] = (),
    environment: str | None = None,
) -> list[Source]:
    """Return the project file at `path` (or in that directory), then the files it includes.

    Variables are expanded from `env`; then the overlay of `environment` is merged. Files outside
    the project's directory are read only under `allow_paths`. Raises `ManifestError` with the
    problems of all files.
    """
    file = path.absolute()
    file = file / PROJECT_FILE if file.is_dir() else file
    with no_garbage_collection():
        return _Project(file, NotedVariables(env), allow_paths).load(environment)


class _Project:
    """Loads file after file and keeps the problems for the end."""

    def __init__(self, file: Path, env: NotedVariables, allow_paths: Sequence[Path]) -> None:
        self._file = file
        self._env = env
        self._allow_paths = allow_paths
        self._sources: list[Source] = []
        self._problems: list[Problem] = []
        self._looked_up_in: set[Path] = set()

    def load(self, environment: str | None) -> list[Source]:
        try:
            self._add(self._file, self._file.name)
        except PathError as error:
            self._problems.append(_file_problem(self._file.name, error))
        for project in self._sources[:1]:
            self._add_includes(project)
        overlay = self._overlay(environment) if environment is not None else None
        if overlay is not None and not self._problems:
            self._sources, self._problems = merge_overlay(self._sources, overlay)
        if self._problems:
            raise ManifestError(self._problems)
        head, *included = self._sources
        looked_up_in = frozenset(self._looked_up_in)
        return [replace(head, variables=self._env.used, looked_up_in=looked_up_in), *included]

    def _overlay(self, environment: str) -> Source | None:
        try:
            file, label = find_overlay(self._file.parent, environment, self._allow_paths)
            source, problems = _source(_read(file), file, label, env=self._env, included=True)
        except PathError as error:
            self._problems.append(_file_problem(overlay_label(environment), error))
            return None
        self._problems.extend(problems)
        return source

    def _add(self, file: Path, label: str) -> None:
        raw = _read(file)
        included = bool(self._sources)
        source, problems = _source(raw, file, label, env=self._env, included=included)
        self._sources.append(source)
        self._problems.extend(problems)

    def _add_includes(self, project: Source) -> None:
        seen = {project.path.resolve()}
        for index, pattern in enumerate(_patterns(project.data)):
            try:
                self._add_matches(pattern, seen)
            except PathError as error:
                place = locate(project, ("include", index))
                self._problems.append(
                    problem_at(place, project.label, error.code, error.message, hint=error.hint)
                )

    def _add_matches(self, pattern: object, seen: set[Path]) -> None:
        if not isinstance(pattern, str) or not pattern:
            return  # the schema says what is wrong with it
        for file, real in find_included(
            pattern, self._file.parent, self._allow_paths, self._looked_up_in
        ):
            if real not in seen:
                seen.add(real)
                self._add(file, self._label(file))

    def _label(self, file: Path) -> str:
        directory = self._file.parent
        return (file.relative_to(directory) if file.is_relative_to(directory) else file).as_posix()


def _patterns(data: Mapping[str, Any]) -> list[object]:
    include = data.get("include")
    return include[:MAX_INCLUDES] if isinstance(include, list) else []


def _read(file: Path) -> bytes:
    """Return the bytes of a regular file, or raise `PathError`."""
    try:
        if not file.is_file():
            raise PathError(
                "AH011", "there is no such file", "`arc-halo init` writes a new project"
            )
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        message = f"cannot read {file.name}: {error.strerror}"
        raise PathError("AH011", message, "check the rights of the file") from error
    if len(raw) > MAX_FILE_BYTES:
        message = f"{file.name} is larger than {MAX_FILE_BYTES // 2**20} MiB"
        raise PathError("AH009", message, "split it into several files")
    return raw


def _source(
    raw: bytes,
    path: Path,
    label: str,
    *,
    env: Mapping[str, str] | None = None,
    included: bool = False,
) -> tuple[Source, list[Problem]]:
    data: dict[str, Any] = {}
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text, problems = "", [_encoding_problem(raw, error, label)]
    else:
        data, problems = parse(text, label=label, env=env)
    digest = hashlib.sha256(raw).digest()
    source = Source(path=path, label=label, text=text, data=data, digest=digest, included=included)
    return source, problems


def _encoding_problem(raw: bytes, error: UnicodeDecodeError, label: str) -> Problem:
    before = raw[: error.start].decode("utf-8-sig")
    place = Lines(raw.decode("utf-8-sig", errors="replace")).at(len(before))
    message = f"the byte 0x{raw[error.start]:02X} is not UTF-8 text"
    return problem_at(place, label, "AH001", message, hint="save the file as UTF-8")


def _file_problem(label: str, error: PathError) -> Problem:
    return Problem(code=error.code, message=error.message, file=label, hint=error.hint)
