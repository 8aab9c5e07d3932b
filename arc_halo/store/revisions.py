"""SQL of revisions: each apply of a project, with every change it made, for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject, Key

INSERT = """
INSERT INTO revisions (project, revision, actor, host, tool_version, git_commit, git_dirty,
                       manifest_digest, plan_digest, summary, run_url, environment, is_partial,
                       rolled_back_to)
VALUES (%(project)s, %(revision)s, %(actor)s, %(host)s, %(tool_version)s, %(git_commit)s,
        %(git_dirty)s, %(manifest_digest)s, %(plan_digest)s, %(summary)s, %(run_url)s,
        %(environment)s, %(is_partial)s, %(rolled_back_to)s)
"""

INSERT_CHANGES = """
INSERT INTO revision_changes (project, revision, ordinal, action, kind, name, old_name, before,
                              after, protected, deletion)
SELECT %(project)s, %(revision)s, item.ordinal, item.action, item.kind, item.name, item.old_name,
       item.before, item.after, item.protected, item.deletion
FROM jsonb_to_recordset(%(items)s) AS item (
    ordinal int, action text, kind text, name text, old_name text, before jsonb, after jsonb,
    protected boolean, deletion text)
"""

ADVANCE = """
UPDATE projects SET head_revision = %(revision)s, manifest_digest = %(manifest_digest)s
WHERE name = %(project)s
"""

_REVISION = """
SELECT revision, created_at, actor, host, database_role, tool_version, git_commit, git_dirty,
       run_url, environment, is_partial, rolled_back_to, manifest_digest, plan_digest, summary
FROM revisions
"""

LIST = (
    _REVISION
    + """
WHERE project = %(project)s AND revision > %(after)s
ORDER BY revision DESC LIMIT %(limit)s
"""
)

FIND = (
    _REVISION
    + """
WHERE project = %(project)s AND revision = %(revision)s
"""
)

BY_PLAN = (
    _REVISION
    + """
WHERE project = %(project)s AND plan_digest = %(plan_digest)s
"""
)

CHANGES = """
SELECT action, kind, name, old_name, before, after, protected, deletion
FROM revision_changes
WHERE project = %(project)s AND revision = %(revision)s
ORDER BY ordinal
"""

TOUCHED = """
SELECT DISTINCT kind, name FROM revision_changes
WHERE project = %(project)s AND revision > %(after)s
ORDER BY kind, name
"""

RENAMES = """
SELECT kind, old_name, name FROM revision_changes
WHERE project = %(project)s AND revision > %(after)s AND old_name IS NOT NULL
ORDER BY revision, ordinal
"""

ADOPTED = """
SELECT DISTINCT kind, name FROM revision_changes
WHERE project = %(project)s AND revision > %(after)s AND action = 'adopt'
"""

LET_GO = """
SELECT last.kind, last.name FROM (
    SELECT DISTINCT ON (kind, name) kind, name, action FROM revision_changes
    WHERE project = %(project)s ORDER BY kind, name, revision DESC, ordinal DESC) AS last
WHERE last.action = 'forget'
"""

# The last time that all of a manifest was applied, and the rollback that went back beyond it.
UNDONE_BY = """
SELECT undone.revision FROM revisions AS undone
JOIN (SELECT max(revision) AS revision FROM revisions
      WHERE project = %(project)s AND manifest_digest = %(manifest_digest)s
        AND rolled_back_to IS NULL AND NOT is_partial) AS applied
  ON undone.revision > applied.revision AND undone.rolled_back_to < applied.revision
WHERE undone.project = %(project)s
ORDER BY undone.revision DESC LIMIT 1
"""

# What a name had last, up to the revision. Where one name was given away and taken anew in the
# same revision, the new resource is what it had.
STATE_AT = """
WITH told AS (
    SELECT revision, ordinal, kind, name, after, protected, deletion
    FROM revision_changes WHERE project = %(project)s AND revision <= %(revision)s
    UNION ALL
    SELECT revision, ordinal, kind, old_name, NULL, false, 'delete'
    FROM revision_changes
    WHERE project = %(project)s AND revision <= %(revision)s AND old_name IS NOT NULL
), last AS (
    SELECT DISTINCT ON (kind, name) kind, name, after, protected, deletion
    FROM told
    ORDER BY kind, name, revision DESC, (after IS NULL), ordinal DESC
)
SELECT kind, name, after AS spec, protected, deletion FROM last WHERE after IS NOT NULL
ORDER BY kind, name
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRevision:
    """An apply that is being committed: who, from where, by which plan."""

    project: str
    revision: int
    actor: str
    host: str
    tool_version: str
    git_commit: str | None
    git_dirty: bool | None
    manifest_digest: bytes
    plan_digest: bytes
    run_url: str | None = None
    environment: str | None = None
    is_partial: bool = False
    rolled_back_to: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionRow:
    """A revision without its changes."""

    revision: int
    created_at: datetime
    actor: str
    host: str
    database_role: str
    tool_version: str
    git_commit: str | None
    git_dirty: bool | None
    run_url: str | None
    environment: str | None
    is_partial: bool
    rolled_back_to: int | None
    manifest_digest: bytes
    plan_digest: bytes
    summary: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRow:
    """One change of a revision, with the documents before and after."""

    action: str
    kind: str
    name: str
    old_name: str | None
    before: JsonObject | None
    after: JsonObject | None
    protected: bool
    deletion: str

    @property
    def key(self) -> Key:
        return Key(kind=self.kind, name=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class PastResource:
    """A resource as a revision left it."""

    kind: str
    name: str
    spec: JsonObject
    protected: bool
    deletion: str

    @property
    def key(self) -> Key:
        return Key(kind=self.kind, name=self.name)


def record(
    conn: Connection,
    new: NewRevision,
    *,
    summary: JsonObject,
    changes: Sequence[JsonObject],
    head_digest: bytes | None,
) -> None:
    """Write a revision with its changes and make it the project's head.

    `head_digest` names the manifest that the database matches from now on, if it does.
    """
    conn.execute(INSERT, {**asdict(new), "summary": Jsonb(summary)})
    place = {"project": new.project, "revision": new.revision}
    conn.execute(INSERT_CHANGES, {**place, "items": Jsonb(changes)})
    conn.execute(ADVANCE, {**place, "manifest_digest": head_digest})


def listed(
    conn: Connection, project: str, *, limit: int | None = None, after: int = 0
) -> list[RevisionRow]:
    """The revisions after `after`, the newest first, at most `limit`."""
    params = {"project": project, "limit": limit, "after": after}
    with conn.cursor(row_factory=class_row(RevisionRow)) as cursor:
        return cursor.execute(LIST, params).fetchall()


def find(conn: Connection, project: str, revision: int) -> RevisionRow | None:
    with conn.cursor(row_factory=class_row(RevisionRow)) as cursor:
        return cursor.execute(FIND, {"project": project, "revision": revision}).fetchone()


def by_plan(conn: Connection, project: str, plan_digest: bytes) -> RevisionRow | None:
    """The revision that a plan came to, if it was applied."""
    params = {"project": project, "plan_digest": plan_digest}
    with conn.cursor(row_factory=class_row(RevisionRow)) as cursor:
        return cursor.execute(BY_PLAN, params).fetchone()


def changes(conn: Connection, project: str, revision: int) -> list[ChangeRow]:
    """What a revision changed, in order."""
    params = {"project": project, "revision": revision}
    with conn.cursor(row_factory=class_row(ChangeRow)) as cursor:
        return cursor.execute(CHANGES, params).fetchall()


def touched(conn: Connection, project: str, *, after: int) -> list[Key]:
    """The resources that revisions after `after` changed."""
    with conn.cursor(row_factory=class_row(Key)) as cursor:
        return cursor.execute(TOUCHED, {"project": project, "after": after}).fetchall()


def renames(conn: Connection, project: str, *, after: int) -> list[tuple[Key, Key]]:
    """The renames after a revision, in order: what each resource was called before, and then."""
    rows = conn.execute(RENAMES, {"project": project, "after": after}).fetchall()
    return [
        (Key(kind=str(kind), name=str(old)), Key(kind=str(kind), name=str(new)))
        for kind, old, new in rows
    ]


def adopted(conn: Connection, project: str, *, after: int) -> set[Key]:
    """What the project took over after a revision."""
    with conn.cursor(row_factory=class_row(Key)) as cursor:
        return set(cursor.execute(ADOPTED, {"project": project, "after": after}))


def let_go(conn: Connection, project: str) -> set[Key]:
    """What the project managed once, and let go, the last thing that it did to it."""
    with conn.cursor(row_factory=class_row(Key)) as cursor:
        return set(cursor.execute(LET_GO, {"project": project}))


def undone_by(conn: Connection, project: str, manifest_digest: bytes) -> RevisionRow | None:
    """The rollback that undid a manifest, unless it was applied as a whole again."""
    params = {"project": project, "manifest_digest": manifest_digest}
    row = conn.execute(UNDONE_BY, params).fetchone()
    return find(conn, project, int(str(row[0]))) if row else None


def check_constraints(conn: Connection) -> None:
    """Check now what would be checked at the end of the transaction."""
    conn.execute("SET CONSTRAINTS ALL IMMEDIATE")


def state_at(conn: Connection, project: str, revision: int) -> list[PastResource]:
    """What the project managed after `revision`, as it was then."""
    params = {"project": project, "revision": revision}
    with conn.cursor(row_factory=class_row(PastResource)) as cursor:
        return cursor.execute(STATE_AT, params).fetchall()
