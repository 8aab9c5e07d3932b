"""Taking over: a resource that nobody manages, or another project, becomes this project's."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError
from arc_halo.manifest.documents import canonical, spec_digest
from arc_halo.reconcile import kinds, state
from arc_halo.reconcile.committing import LOCK_SECONDS
from arc_halo.reconcile.who import origin
from arc_halo.store import projects, revisions
from arc_halo.store.locks import try_xact_lock
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject, Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What was taken over, from which project (None: from nobody), and the new revision.

    What was the project's own before keeps its revision: nothing is done.
    """

    key: Key
    owner: str | None
    revision: int
    is_new: bool = True


def parse_address(text: str) -> Key:
    """`model/poet@1.0.0` as a key. Raises `InvalidInputError`."""
    kind, slash, name = text.partition("/")
    if not slash or not name or kind not in kinds.BY_NAME:
        known = ", ".join(kinds.BY_NAME)
        raise InvalidInputError(
            f"{text!r} is no address of a resource",
            hint=f"write KIND/NAME, as in model/poet@1.0.0; kinds are {known}",
            code="AH006",
        )
    return Key(kind=kind, name=name)


def adopt(
    conn: Connection, project: str, key: Key, *, directory: Path, may_take: bool = False
) -> Adopted:
    """Make `project` the owner of a resource as it stands; its rows stay untouched.

    One transaction, and a revision of each project it concerns. `may_take` allows taking it from
    another project, unless it is protected there. Raises `NotFoundError` for what is not there,
    `RefusedError` for what is another's. `deletion` and `ignore` stay as
    they were until the next apply.
    """
    with conn.transaction():
        owner = _owner(conn, key)
        for each in sorted({project, *([owner] if owner else [])}):
            try_xact_lock(conn, f"arc-halo/{each}", LOCK_SECONDS)
        record = _checked(conn, project, key, may_take)
        if record is not None and record.project == project:
            revision = projects.head(conn, project).head_revision
            return Adopted(key=key, owner=project, revision=revision, is_new=False)
        spec = state.live_specs(conn, [key])[key]
        if record is not None:
            _let_go(conn, record.project, key, spec, directory)
        revision = _take(conn, project, key, spec, record, directory)
    return Adopted(key=key, owner=record.project if record else None, revision=revision)


def _owner(conn: Connection, key: Key) -> str | None:
    rows = projects.list_managed(conn, kind=key.kind, name=key.name)
    return rows[0].project if rows else None


def _checked(conn: Connection, project: str, key: Key, may_take: bool) -> projects.Managed | None:
    """What its owner has on record, now that nobody else can change that."""
    record = projects.managed(conn, project, [key]).get(key)
    owner = record.project if record else None
    if key not in state.live_digests(conn, [key]):
        raise NotFoundError(
            f"there is no {key} in the database", hint="`arc-halo get --all-projects` lists all"
        )
    if owner == project:
        return record
    if owner is not None and not may_take:
        raise RefusedError(
            f"{key} belongs to the project {owner!r}",
            hint="its own manifest would then conflict: take it out there, and say `--yes` here",
            code="AH053",
        )
    if record is not None and record.protected:
        raise RefusedError(
            f"{key} is protected by the project {owner!r}",
            hint="declare it there with `protected: false`, and apply; or leave it there",
            code="AH052",
        )
    return record


def _let_go(conn: Connection, owner: str, key: Key, spec: JsonObject, directory: Path) -> None:
    projects.delete_managed(conn, owner, [key])
    revision = projects.head(conn, owner, lock=True).head_revision + 1
    change = {"action": "forget", "before": spec, "after": None}
    _record(conn, owner, revision, key, change, directory)


def _take(
    conn: Connection,
    project: str,
    key: Key,
    spec: JsonObject,
    record: projects.Managed | None,
    directory: Path,
) -> int:
    projects.ensure(conn, project)
    revision = projects.head(conn, project, lock=True).head_revision + 1
    row = kinds.BY_NAME[key.kind].live(conn, [key.name])[key.name]
    item = _managed(key, spec, row.id, row.digest)
    if record is not None:
        item |= {"deletion": record.deletion, "ignored": list(record.ignored)}
    projects.upsert_managed(conn, project, revision, [item])
    change = {
        "action": "adopt",
        "before": spec,
        "after": spec,
        "deletion": item["deletion"],
    }
    _record(conn, project, revision, key, change, directory)
    return revision


def _managed(key: Key, spec: JsonObject, resource_id: UUID, live_digest: str) -> JsonObject:
    return {
        "kind": key.kind,
        "name": key.name,
        "resource_id": str(resource_id),
        "spec": spec,
        "spec_digest": spec_digest(spec).hex(),
        "live_digest": live_digest,
        "protected": False,
        "deletion": "delete",
        "ignored": [],
        "tags": spec.get("tags", {}),
        "source_file": None,
    }


def _record(
    conn: Connection, project: str, revision: int, key: Key, change: JsonObject, directory: Path
) -> None:
    identity = canonical([project, revision, change["action"], str(key)])
    name = hashlib.sha256(b"arc-halo/adopt/1\0" + identity).digest()
    last = revisions.find(conn, project, revision - 1)
    whole = {
        "ordinal": 0,
        "kind": key.kind,
        "name": key.name,
        "old_name": None,
        "protected": False,
        "deletion": "delete",
        **change,
    }
    revisions.record(
        conn,
        revisions.NewRevision(
            project=project,
            revision=revision,
            **asdict(origin(directory)),
            manifest_digest=projects.head(conn, project).manifest_digest or bytes(32),
            plan_digest=name,
            environment=last.environment if last else None,
            is_partial=True,
        ),
        summary={"changes": {change["action"]: 1}},
        changes=[whole],
        head_digest=None,
    )
