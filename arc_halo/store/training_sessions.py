"""SQL of training sessions: begun, taken up again, kept alive, ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection, as_uuid
from arc_halo.types import JsonObject

BEGIN = """
INSERT INTO training_sessions (session_name, project, model_id, model_name, model_version,
                               training_name, total_epochs, total_steps, current_step, config,
                               dataset, parent_id, forked_at_step, group_name, tags, notes, host,
                               pid, git_commit, git_dirty)
SELECT %(name)s, (SELECT project.name FROM projects AS project WHERE project.name = %(project)s),
       (SELECT model.id FROM models AS model
        WHERE model.model_name = %(model_name)s AND model.version = %(model_version)s),
       %(model_name)s, %(model_version)s, %(training_name)s, %(total_epochs)s, %(total_steps)s,
       coalesce(%(forked_at_step)s, 0), %(config)s, %(dataset)s, %(parent_id)s,
       %(forked_at_step)s, %(group)s, %(tags)s, %(notes)s, %(host)s, %(pid)s, %(git_commit)s,
       %(git_dirty)s
RETURNING id, lease
"""

RECORD = """
SELECT id, session_name AS name, model_name || '@' || model_version AS model, status,
       training_name, total_epochs, current_epoch, total_steps, current_step, config, dataset,
       parent_id, forked_at_step, group_name AS group, tags, notes, host, pid, git_commit,
       git_dirty, error, lease, started_at, heartbeat_at, finished_at,
       extract(epoch FROM clock_timestamp() - heartbeat_at)::double precision AS silent_seconds
FROM training_sessions
"""

BY_ID = f"""
{RECORD}
WHERE id = %(id)s
"""

NEWEST = f"""
{RECORD}
WHERE (%(name)s::text IS NULL OR session_name = %(name)s)
  AND (%(model)s::text IS NULL OR model_name || '@' || model_version = %(model)s)
  AND (%(training_name)s::text IS NULL OR training_name = %(training_name)s)
ORDER BY started_at DESC, id
LIMIT 1
"""

# The lease that was seen has to be there still: of two programs that find it, one gets it.
TAKE_UP = """
UPDATE training_sessions
SET status = 'running', lease = gen_random_uuid(), error = NULL, finished_at = NULL,
    heartbeat_at = clock_timestamp(), host = %(host)s, pid = %(pid)s, config = %(config)s,
    git_commit = %(git_commit)s, git_dirty = %(git_dirty)s
WHERE id = %(id)s AND lease = %(lease)s
RETURNING lease
"""

BEAT = """
UPDATE training_sessions
SET heartbeat_at = clock_timestamp(), current_step = coalesce(%(step)s, current_step),
    current_epoch = coalesce(%(epoch)s, current_epoch)
WHERE id = %(id)s AND lease = %(lease)s AND status = 'running'
"""

REACH = """
UPDATE training_sessions
SET current_step = %(step)s
WHERE id = %(id)s AND current_step < %(step)s
"""

# A clock that was set back does not keep a session from its end.
END = """
UPDATE training_sessions
SET status = %(status)s, error = %(error)s, heartbeat_at = clock_timestamp(),
    finished_at = CASE WHEN %(status)s <> 'paused'
                  THEN greatest(clock_timestamp(), started_at) END
WHERE id = %(id)s AND lease = %(lease)s
"""

CONFIGURE = """
UPDATE training_sessions
SET config = config || %(config)s, total_epochs = coalesce(%(total_epochs)s, total_epochs),
    total_steps = coalesce(%(total_steps)s, total_steps)
WHERE id = %(id)s AND lease = %(lease)s
RETURNING config
"""

ANNOTATE = """
UPDATE training_sessions
SET tags = tags || %(tags)s, notes = coalesce(%(notes)s, notes)
WHERE id = %(id)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSession:
    """A session that begins. A fork names its parent, and the step that it goes on from."""

    model_name: str
    model_version: str
    name: str | None = None
    project: str | None = None
    training_name: str | None = None
    total_epochs: int | None = None
    total_steps: int | None = None
    config: JsonObject
    dataset: JsonObject
    parent_id: UUID | None = None
    forked_at_step: int | None = None
    group: str | None = None
    tags: JsonObject
    notes: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Who writes a session: the process, and the commit of what it runs."""

    host: str
    pid: int
    git_commit: str | None = None
    git_dirty: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A session as it stands. `silent_seconds` have passed since its last sign of life."""

    id: UUID
    name: str | None
    model: str
    status: str
    training_name: str | None
    total_epochs: int | None
    current_epoch: float
    total_steps: int | None
    current_step: int
    config: JsonObject
    dataset: JsonObject
    parent_id: UUID | None
    forked_at_step: int | None
    group: str | None
    tags: JsonObject
    notes: str | None
    host: str | None
    pid: int | None
    git_commit: str | None
    git_dirty: bool | None
    error: str | None
    lease: UUID
    started_at: datetime
    heartbeat_at: datetime
    finished_at: datetime | None
    silent_seconds: float


def begin(conn: Connection, new: NewSession, program: Program) -> tuple[UUID, UUID]:
    """Enter a session; its id and the lease of who writes it."""
    fields: Mapping[str, Any] = {
        "name": new.name,
        "project": new.project,
        "model_name": new.model_name,
        "model_version": new.model_version,
        "training_name": new.training_name,
        "total_epochs": new.total_epochs,
        "total_steps": new.total_steps,
        "config": Jsonb(new.config),
        "dataset": Jsonb(new.dataset),
        "parent_id": new.parent_id,
        "forked_at_step": new.forked_at_step,
        "group": new.group,
        "tags": Jsonb(new.tags),
        "notes": new.notes,
        **_program(program),
    }
    row = conn.execute(BEGIN, fields).fetchone()
    assert row is not None
    return as_uuid(row[0]), as_uuid(row[1])


def find(conn: Connection, id: UUID) -> SessionRecord | None:
    with conn.cursor(row_factory=class_row(SessionRecord)) as cursor:
        return cursor.execute(BY_ID, {"id": id}).fetchone()


def newest(
    conn: Connection,
    *,
    name: str | None = None,
    model: str | None = None,
    training_name: str | None = None,
) -> SessionRecord | None:
    """The session begun last of those that have what is given."""
    with conn.cursor(row_factory=class_row(SessionRecord)) as cursor:
        given = {"name": name, "model": model, "training_name": training_name}
        return cursor.execute(NEWEST, given).fetchone()


def take_up(
    conn: Connection, record: SessionRecord, config: JsonObject, program: Program
) -> UUID | None:
    """Go on with a session; the new lease, or None if another program has taken it up since."""
    fields = {"id": record.id, "lease": record.lease, "config": Jsonb(config), **_program(program)}
    row = conn.execute(TAKE_UP, fields).fetchone()
    return None if row is None else as_uuid(row[0])


def beat(
    conn: Connection, id: UUID, lease: UUID, *, step: int | None = None, epoch: float | None = None
) -> bool:
    """Say that the session lives and how far it is; False where it is somebody else's now."""
    fields = {"id": id, "lease": lease, "step": step, "epoch": epoch}
    return conn.execute(BEAT, fields).rowcount == 1


def reach(conn: Connection, id: UUID, step: int) -> None:
    """Say that a session has come to a step at least."""
    conn.execute(REACH, {"id": id, "step": step})


def end(conn: Connection, id: UUID, lease: UUID, status: str, error: str | None) -> bool:
    """End or pause a session; False where it is somebody else's now."""
    fields = {"id": id, "lease": lease, "status": status, "error": error}
    return conn.execute(END, fields).rowcount == 1


def configure(
    conn: Connection,
    id: UUID,
    lease: UUID,
    *,
    config: JsonObject,
    total_epochs: int | None,
    total_steps: int | None,
) -> JsonObject | None:
    """Add to the config, and say how long it will be; the whole config now, or None where the
    session is somebody else's."""
    fields = {"id": id, "lease": lease, "config": Jsonb(config)}
    totals = {"total_epochs": total_epochs, "total_steps": total_steps}
    row = conn.execute(CONFIGURE, fields | totals).fetchone()
    return None if row is None else row[0]


def annotate(conn: Connection, id: UUID, tags: JsonObject, notes: str | None) -> None:
    """Add tags to those there are, and replace the notes if some are given."""
    conn.execute(ANNOTATE, {"id": id, "tags": Jsonb(tags), "notes": notes})


def _program(program: Program) -> dict[str, Any]:
    return {
        "host": program.host,
        "pid": program.pid,
        "git_commit": program.git_commit,
        "git_dirty": program.git_dirty,
    }
