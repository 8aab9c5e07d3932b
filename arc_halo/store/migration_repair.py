"""Accepting what is not as migrations left it: each time with a reason, kept in `_yoyo_log`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from arc_halo.errors import InvalidInputError, LockNotHadError, NotFoundError
from arc_halo.store.catalogue import SchemaChange
from arc_halo.store.connection import Connection
from arc_halo.store.migrate import find, read
from arc_halo.store.migration_begun import Begun, read_begun, settle
from arc_halo.store.migration_files import MigrationFile
from arc_halo.store.migration_marks import accept_digest, read_marks
from arc_halo.store.migration_runs import exclusively
from arc_halo.store.migration_scripts import created_names
from arc_halo.store.migration_text import digest
from arc_halo.store.schema_drift import record_whole, schema_drift

Found = Literal["done", "again"]


def repair(
    conn: Connection,
    id: str,
    *,
    reason: str,
    by: str,
    statement: Found | None = None,
    directory: Path | None = None,
    lock_timeout: float = 10.0,
) -> str:
    """Accept the text that a migration's file has now; the whole id.

    Of one that was interrupted, `statement` says what became of the statement it stopped in.
    Raises `NotFoundError` when there is nothing to accept.
    """
    _check_reason(reason)
    file = find(read(directory), id)
    with exclusively(conn, lock_timeout):
        begun = read_begun(conn)
        if begun is not None and begun.id == file.id:
            _repair_begun(conn, file, begun, statement)
        elif statement is not None:
            raise NotFoundError(f"{file.id} was not interrupted", hint=_STATUS)
        else:
            _repair_text(conn, file)
        _log(conn, file.id, "repair", by, reason)
    return file.id


def accept_drift(
    conn: Connection,
    *,
    reason: str,
    by: str,
    directory: Path | None = None,
    lock_timeout: float = 10.0,
) -> tuple[SchemaChange, ...]:
    """Take the schema as it is for what migrations made; what had drifted.

    Raises `NotFoundError` when nothing had.
    """
    _check_reason(reason)
    files = read(directory)
    with exclusively(conn, lock_timeout):
        changes = schema_drift(conn)
        if not changes:
            raise NotFoundError("the schema is as the migrations made it")
        record_whole(conn, created_names(files))
        _log(conn, None, "accept", by, reason)
    return changes


_STATUS = "see `arc-halo migrate status`"
_LONGEST = 255
"""What yoyo's table holds."""


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > _LONGEST:
        raise InvalidInputError(
            f"a reason has 1 to {_LONGEST} characters", hint="say in a sentence why", code="AH007"
        )


def _repair_text(conn: Connection, file: MigrationFile) -> None:
    mark = read_marks(conn).get(file.id)
    if mark is None or mark.digest in (None, file.digest):
        raise NotFoundError(f"nothing of {file.id} is to be repaired", hint=_STATUS)
    accept_digest(conn, file)


def _repair_begun(
    conn: Connection, file: MigrationFile, begun: Begun, statement: Found | None
) -> None:
    if begun.is_running:
        raise LockNotHadError(f"{begun.id} is being run (pid {begun.pid})", hint="wait for it")
    text = digest(file.text if begun.direction == "up" else file.rollback)
    if statement is None and text == begun.digest:
        raise NotFoundError(
            f"{file.id}.sql is as it was when it began to run",
            hint="run the same command again, or say what became of it: `--statement done|again`",
        )
    settle(
        conn,
        file.id,
        digest=text,
        statements_done=begun.statements_done + (statement == "done"),
        is_settled=begun.is_settled or statement is not None,
    )


def _log(conn: Connection, id: str | None, operation: str, by: str, reason: str) -> None:
    from arc_halo.store.yoyo_tables import YoyoTables

    YoyoTables(conn).note(id, operation, by=by, comment=reason)
