"""A manifest written from the database: what a project manages, as YAML that plans to nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from arc_halo.config import PROJECT_FILE
from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.manifest.declaring import (
    SECTIONS,
    Block,
    Recorded,
    blocks_of,
    referred_models,
)
from arc_halo.manifest.documents import MODEL, REACTOR, TRAINING, Lifecycle
from arc_halo.manifest.writing import is_writable, key_lines, mapping_lines, size_of
from arc_halo.plugins import PluginManager
from arc_halo.reconcile import state
from arc_halo.sizes import format_count
from arc_halo.store import aliases, migrate, models, projects
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject, Key

FIRST_LINES: Final = (
    "# For completion in editors: arc-halo schema > manifest.schema.json, and this line:",
    "# yaml-language-server: $schema=manifest.schema.json",
    "# Written from the database by `arc-halo export-manifest`.",
)
KEPT: Final = ("database", "plugins", "storage", "settings")
"""What the project file says that no database knows; it is taken over as it is written."""

PARTS: Final = "declared"
PART_SIZE: Final = 400_000
"""Keys and values in a file, of the million that one may have."""

_DEPTH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedManifest:
    """The files of a manifest by their paths in the project's directory, the project file first.

    `unmanaged` are the resources in it that have to be adopted before it plans to nothing.
    """

    project: str
    files: Mapping[str, str]
    resource_count: int
    unmanaged: tuple[Key, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The project file, where there is no other. Raises `InvalidInputError`."""
        if len(self.files) > 1:
            raise InvalidInputError(
                f"the manifest needs {len(self.files)} files, {', '.join([*self.files][1:4])} "
                "among them",
                hint="say where to write them: `--out DIR`",
                code="AH009",
            )
        return self.files[PROJECT_FILE]


def export_manifest(
    conn: Connection,
    project: str,
    plugins: PluginManager,
    *,
    head: Mapping[str, Any],
    with_unmanaged: bool = False,
) -> ExportedManifest:
    """The manifest that declares what `project` manages, as it was applied last.

    `head` is what the project file says now. With `with_unmanaged` it declares what nobody
    manages, too, as it stands. Reads in one snapshot. Raises `NotFoundError` for a project that
    the database does not know, `InvalidInputError` for what no YAML can hold.
    """
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        migrate.check(conn)
        recorded = _managed(conn, project)
        if with_unmanaged:
            recorded |= _unmanaged(conn)
        elif not recorded and projects.head(conn, project).head_revision == 0:
            raise _unknown(conn, project)
        recorded = _with_formats(conn, recorded)
        blocks = blocks_of(recorded, plugins, _aliases(conn, recorded))
    kept = {name: head[name] for name in KEPT if head.get(name)}
    files = _files({"version": 1, "project": project}, kept, blocks)
    return ExportedManifest(
        project=project,
        files=files,
        resource_count=len(recorded),
        unmanaged=tuple(key for key, each in recorded.items() if not each.is_managed),
        notes=tuple(f"{each.key}: {remark}" for each in blocks for remark in each.remarks),
    )


def _managed(conn: Connection, project: str) -> dict[Key, Recorded]:
    rows = projects.managed(conn, project, ())
    specs = projects.managed_specs(conn, rows)
    return {
        key: Recorded(
            key=key,
            spec=specs[key],
            lifecycle=Lifecycle(
                protected=row.protected,
                deletion="orphan" if row.deletion == "orphan" else "delete",
                ignore=tuple(row.ignored),
            ),
        )
        for key, row in rows.items()
    }


def _unmanaged(conn: Connection) -> dict[Key, Recorded]:
    specs = state.live_specs(conn, projects.list_unmanaged(conn))
    return {key: Recorded(key=key, spec=spec, is_managed=False) for key, spec in specs.items()}


def _with_formats(conn: Connection, recorded: Mapping[Key, Recorded]) -> dict[Key, Recorded]:
    names = [key.name for key in recorded if key.kind == MODEL]
    formats = models.weight_formats(conn, names) if names else {}
    return {
        key: replace(each, weights_format=formats[key.name])
        if key.kind == MODEL and key.name in formats
        else each
        for key, each in recorded.items()
    }


def _aliases(conn: Connection, recorded: Mapping[Key, Recorded]) -> dict[str, str]:
    """An alias of each model that is referred to and declared elsewhere, or nowhere."""
    wanted = {
        name
        for key, each in recorded.items()
        if key.kind in (REACTOR, TRAINING)
        for name in referred_models(each.spec)
        if Key(kind=MODEL, name=name) not in recorded
    }
    return aliases.of_models(conn, models.split_names(sorted(wanted))) if wanted else {}


def _unknown(conn: Connection, project: str) -> NotFoundError:
    known = sorted({row.project for row in projects.list_managed(conn)})
    return NotFoundError(
        f"the database knows no project {project!r}",
        hint=f"there are {', '.join(known)}: choose one by `--name`"
        if known
        else "what nobody manages is exported by `--unmanaged`",
    )


def _files(head: JsonObject, kept: JsonObject, blocks: Sequence[Block]) -> dict[str, str]:
    """The text of each file: one, unless there is too much for it, or what no YAML can hold."""
    beside: dict[str, str] = {}
    storable = [_storable(block, beside) for block in blocks]
    parts = _parts(storable)
    lines = [*FIRST_LINES, *mapping_lines(head)]
    if len(parts) > 1:
        labels = [f"{PARTS}/{number:04}.yaml" for number in range(1, len(parts) + 1)]
        beside |= {
            label: _text([FIRST_LINES[0].replace("=", "=../"), *_sections(part)])
            for label, part in zip(labels, parts, strict=True)
        }
        lines += mapping_lines({"include": [f"{PARTS}/*.yaml"]})
        parts = []
    lines += mapping_lines(kept, is_escaped=False)
    lines += (line for part in parts for line in _sections(part))
    return {PROJECT_FILE: _text(lines), **beside}


def _storable(block: Block, beside: dict[str, str]) -> Block:
    """The block; an architecture that only JSON can hold goes into a file `beside` it."""
    if is_writable(block.data, _DEPTH):
        return block
    rest = {name: value for name, value in block.data.items() if name != "architecture"}
    if not is_writable(rest, _DEPTH):
        name = next(n for n, value in rest.items() if not is_writable({n: value}, _DEPTH))
        raise InvalidInputError(
            f"{block.key}: {name} holds what no manifest can: a control character, a text or a "
            "number too large, or it is nested too deep",
            hint="change it in the database, and export again",
            code="AH010",
        )
    label = f"architectures/{block.key.name}.json"
    beside[label] = json.dumps(block.data["architecture"], indent=2, sort_keys=True) + "\n"
    return replace(block, data={**block.data, "architecture": label})


def _parts(blocks: Sequence[Block]) -> list[list[Block]]:
    """The blocks of each file."""
    parts: list[list[Block]] = [[]]
    size = 0
    for block in blocks:
        more = size_of(block.data)
        if parts[-1] and size + more > PART_SIZE:
            parts.append([])
            size = 0
        parts[-1].append(block)
        size += more
    return parts


def _sections(blocks: Sequence[Block]) -> Iterator[str]:
    for section in SECTIONS.values():
        inside = [block for block in blocks if block.section == section]
        if inside:
            yield ""
            yield f"{section}:"
            yield from (f"  {line}" for block in inside for line in _declared(block))


def _declared(block: Block) -> Iterator[str]:
    yield from (f"# {remark}" for remark in block.remarks)
    yield from (f"# nobody manages {key} yet: arc-halo adopt {key}" for key in block.unmanaged)
    if not block.data:
        yield from key_lines(block.key.name, "{}")
        return
    yield from key_lines(block.key.name)
    yield from (f"  {line}" for line in mapping_lines(block.data))


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def summary(found: ExportedManifest) -> str:
    """`9 resources of halo-demo`, for a line that says what was written."""
    more = f", {len(found.unmanaged)} of them to be adopted" if found.unmanaged else ""
    return f"{format_count(found.resource_count, 'resource')} of {found.project}{more}"
