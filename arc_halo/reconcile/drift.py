"""Drift: what the database holds, against what the last apply left in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from arc_halo._version import __version__
from arc_halo.errors import SchemaMismatchError
from arc_halo.reconcile import state
from arc_halo.reconcile.changes import FieldChange
from arc_halo.reconcile.diff import field_changes
from arc_halo.reconcile.markdown import field_rows
from arc_halo.reconcile.markdown_page import Page, Row, Section, code, marker, page_text, prose
from arc_halo.reconcile.plan_document import FORMAT_VERSION
from arc_halo.reconcile.report import Line, field_text
from arc_halo.sizes import format_count
from arc_halo.store import drift, migrate, projects
from arc_halo.store.catalogue import SchemaChange
from arc_halo.store.rows import Connection
from arc_halo.store.schema_drift import schema_drift
from arc_halo.types import JsonObject, Key

DERIVED = FieldChange(path="(derived rows)", before="as applied", after="changed")
"""Where a row that follows from the document was changed, and the document was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceDrift:
    """A resource that was changed outside of apply: as applied, and as it stands (None: gone)."""

    key: Key
    before: JsonObject
    after: JsonObject | None
    fields: tuple[FieldChange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """All that is not as revision `revision` of the project, and the migrations, left it."""

    project: str
    revision: int
    managed_count: int
    resources: tuple[ResourceDrift, ...] = ()
    schema: tuple[SchemaChange, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def is_found(self) -> bool:
        return bool(self.resources or self.schema)


def find_drift(conn: Connection, project: str, *, with_schema: bool = True) -> Drift:
    """Look at every managed row, and at the schema. Reads in one snapshot, and writes nothing.

    Fields that the manifest ignores are no drift. Raises `SchemaMismatchError` for a database
    that is not migrated.
    """
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        migrate.check(conn)
        head = projects.head(conn, project)
        schema, notes = _schema(conn) if with_schema else ((), ())
        return Drift(
            project=project,
            revision=head.head_revision,
            managed_count=drift.managed_count(conn, project),
            resources=tuple(_resources(conn, project)),
            schema=schema,
            notes=notes,
        )


def _schema(conn: Connection) -> tuple[tuple[SchemaChange, ...], tuple[str, ...]]:
    try:
        return schema_drift(conn), ()
    except SchemaMismatchError as exc:
        return (), (f"the schema was not compared: {exc.message}",)


def _resources(conn: Connection, project: str) -> Iterator[ResourceDrift]:
    keys = drift.drifted(conn, project)
    if not keys:
        return
    applied = projects.managed_specs(conn, keys)
    ignored = projects.ignored(conn, keys)
    live = state.live_specs(conn, keys)
    for key in keys:
        before, after = applied[key], live.get(key)
        if after is None:
            yield ResourceDrift(key=key, before=before, after=None)
            continue
        moved = field_changes(before, after)
        told = tuple(f for f in moved if f.field not in ignored[key])
        if told or not moved:
            fields = told or (DERIVED,)
            yield ResourceDrift(key=key, before=before, after=after, fields=fields)


def drift_lines(found: Drift) -> Iterator[Line]:
    """Drift as text, the summary last."""
    for resource in found.resources:
        if resource.after is None:
            yield Line(f"- {resource.key} was deleted", "delete")
            continue
        yield Line(f"~ {resource.key} was changed", "update")
        for each in resource.fields:
            yield Line(f"    {field_text(resource.key.kind, each)}", "dim")
    for change in found.schema:
        yield Line(f"~ schema: {change}", "update")
    for note in found.notes:
        yield Line(f"note: {note}", "dim")
    if found.resources:
        yield Line("    hint: `arc-halo plan` shows what an apply would put right", "dim")
    yield Line(drift_summary(found), "bold")


def drift_summary(found: Drift) -> str:
    """The last line: `Drift: 2 resources and 1 object of the schema since revision 7.`"""
    if not found.is_found:
        count = format_count(found.managed_count, "resource")
        return f"No drift: {count} of {found.project} as revision {found.revision} left them."
    parts = []
    if found.resources:
        parts.append(format_count(len(found.resources), "resource"))
    if found.schema:
        parts.append(f"{format_count(len(found.schema), 'object')} of the schema")
    return f"Drift: {' and '.join(parts)}, since revision {found.revision} of {found.project}."


def drift_json(found: Drift) -> JsonObject:
    """Drift for programs; its schema is `drift.schema.json`."""
    return {
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "project": found.project,
        "revision": found.revision,
        "has_drift": found.is_found,
        "resource_drift": [_resource_json(each) for each in found.resources],
        "schema_drift": [
            {"object": c.object, "drift": c.change, "before": c.before, "after": c.after}
            for c in found.schema
        ],
        "notes": list(found.notes),
    }


def drift_markdown(
    found: Drift,
    *,
    environment: str | None = None,
    max_bytes: int | None = None,
    whole: str | None = None,
) -> str:
    """Drift for an issue, cut below `max_bytes`; `whole` says then where all of it is."""
    lists = {
        "Deleted": [Row(line=_heading(each)) for each in found.resources if each.after is None],
        "Changed": [_changed(each) for each in found.resources if each.after is not None],
        "Schema": [Row(line=f"- {code(str(change))}") for change in found.schema],
        "Notes": [Row(line=f"- {prose(note)}") for note in found.notes],
    }
    where = f" in {code(environment)}" if environment else ""
    page = Page(
        marker=marker(found.project, environment),
        title=f"Drift of {code(found.project)}{where}",
        summary=drift_summary(found),
        sections=[
            Section(title=f"{title}: {len(rows):,}", rows=rows, rank=rank)
            for rank, (title, rows) in enumerate(lists.items())
            if rows
        ],
    )
    return page_text(replace(page, whole=whole) if whole else page, max_bytes)


def _heading(resource: ResourceDrift) -> str:
    symbol = "-" if resource.after is None else "~"
    return f"- {code(f'{symbol} {resource.key}')}"


def _changed(resource: ResourceDrift) -> Row:
    texts = [field_text(resource.key.kind, each) for each in resource.fields]
    return Row(line=_heading(resource), details=field_rows("field", texts))


def _resource_json(resource: ResourceDrift) -> dict[str, Any]:
    return {
        "address": str(resource.key),
        "kind": resource.key.kind,
        "name": resource.key.name,
        "drift": "deleted" if resource.after is None else "changed",
        "fields": [{"path": f.path, "before": f.before, "after": f.after} for f in resource.fields],
        "change": {"before": resource.before, "after": resource.after},
    }
