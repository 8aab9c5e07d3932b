"""The migration runner: yoyo's files and tables, all pending migrations in one transaction.

yoyo commits a migration and its mark apart, and knows a file by its name alone. Here the
migrations, their marks in yoyo's tables and the digests of their texts in `arc_halo_migrations`
commit together or not at all, on the caller's connection.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import sql
from psycopg.rows import scalar_row

from arc_halo.errors import (
    ConnectionFailedError,
    DatabaseError,
    NotFoundError,
    SchemaMismatchError,
)
from arc_halo.store.catalogue import read_catalogue
from arc_halo.store.connection import Connection, translate, try_xact_lock
from arc_halo.store.failures import translated
from arc_halo.store.migration_files import (
    MigrationFile,
    Script,
    Statement,
    parse,
    parse_rollback,
    read_files,
    wrong,
)
from arc_halo.store.migration_files import migrations_directory as migrations_directory
from arc_halo.store.migration_marks import (
    Mark,
    ensure_digests_table,
    forget_digest,
    read_marks,
    record_digest,
)
from arc_halo.store.schema_drift import (
    ensure_schema_table,
    record_changes,
    record_whole,
    wants_recording,
)

LOCK = "arc-halo/migrate"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationStatus:
    """One migration: `edited` when its file changed after it ran, `missing` when it has none."""

    id: str
    state: Literal["applied", "pending", "edited", "missing"]
    applied_at: datetime | None = None


def status(conn: Connection, *, directory: Path | None = None) -> list[MigrationStatus]:
    """Every migration by number. Only reads, and works on an empty database too."""
    files = _files(directory)
    with translate():
        return _compare(files, read_marks(conn))


def pending(conn: Connection, *, directory: Path | None = None) -> list[str]:
    """The ids of the migrations that `up` would apply, by number."""
    return [each.id for each in status(conn, directory=directory) if each.state == "pending"]


def check(conn: Connection, *, directory: Path | None = None) -> None:
    """Raise `SchemaMismatchError` unless the database has exactly this program's migrations."""
    found = status(conn, directory=directory)
    _check_history(found)
    waiting = [each.id for each in found if each.state == "pending"]
    if not waiting:
        return
    hint = "run 'arc-halo migrate up'"
    if len(waiting) == len(found):
        raise SchemaMismatchError("the database has no Arc-Halo schema yet", hint=hint)
    raise SchemaMismatchError(f"migrations are pending: {', '.join(waiting)}", hint=hint)


def up(
    conn: Connection,
    *,
    to: str | None = None,
    lock_timeout: float = 10.0,
    directory: Path | None = None,
) -> list[str]:
    """Apply what is pending, up to and including `to` (`3`, `0003` or the whole id); its ids.

    One transaction: all of it, or none and an error that names file, line and column. `conn`
    is in autocommit mode and direct, not a pooler's. `lock_timeout`, in seconds, bounds the wait
    for another migration and for each table.
    """
    files = _files(directory)
    last = files[-1].id if to is None else _find(files, to).id
    with _exclusively(conn, lock_timeout):
        marks = read_marks(conn)
        found = _compare(files, marks)
        _check_history(found)
        waiting = {each.id for each in found if each.state == "pending" and each.id <= last}
        with _recorded(conn, files, marks, waiting):
            _apply(conn, files, waiting)
        _take_over(conn, files, marks)
    return sorted(waiting)


def down(
    conn: Connection, *, to: str, lock_timeout: float = 10.0, directory: Path | None = None
) -> list[str]:
    """Roll back what came after `to`, which itself stays, latest first; `0` leaves nothing.

    As `up`, in one transaction. What the dropped tables held is lost.
    """
    files = _files(directory)
    kept = "" if re.fullmatch("0+", to) else _find(files, to).id
    with _exclusively(conn, lock_timeout):
        marks = read_marks(conn)
        found = _compare(files, marks)
        _check_none_missing(found)
        applied = {each.id for each in found if each.state != "pending"}
        undone = [file for file in reversed(files) if file.id in applied and file.id > kept]
        with _recorded(conn, files, marks, undone):
            _roll_back(conn, undone)
    return [file.id for file in undone]


TAKEN = """
SELECT relname::text AS name FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relname = ANY(%(names)s)
UNION ALL
SELECT proname::text FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace AND proname = ANY(%(names)s)
ORDER BY name
"""

SET_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', %(milliseconds)s, true)"

_BEGIN = (
    # A stricter level would look at the database as it was before the lock was had.
    sql.SQL("SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE"),
    sql.SQL("SET LOCAL client_min_messages = warning"),
)

_CREATES = re.compile(
    r"^CREATE\s+(?:UNLOGGED\s+)?(?:TABLE|VIEW|FUNCTION)\s+(\w+)", re.IGNORECASE | re.MULTILINE
)


def _files(directory: Path | None) -> list[MigrationFile]:
    return read_files(migrations_directory() if directory is None else directory)


def _find(files: Sequence[MigrationFile], to: str) -> MigrationFile:
    for file in files:
        if to == file.id or to.zfill(4) == file.id[:4]:
            return file
    known = ", ".join(file.id for file in files)
    raise NotFoundError(f"there is no migration {to!r}", hint=f"there are {known}")


def _compare(files: Sequence[MigrationFile], marks: Mapping[str, Mark]) -> list[MigrationStatus]:
    known = {file.id for file in files}
    # A mark without a digest that fits no file is of somebody else who uses yoyo here.
    missing = [
        MigrationStatus(id=mark.id, state="missing", applied_at=mark.applied_at)
        for mark in marks.values()
        if mark.digest is not None and mark.id not in known
    ]
    return sorted([*missing, *(_state(f, marks.get(f.id)) for f in files)], key=lambda s: s.id)


def _state(file: MigrationFile, mark: Mark | None) -> MigrationStatus:
    if mark is None:
        return MigrationStatus(id=file.id, state="pending")
    edited = mark.digest not in (None, file.digest)
    return MigrationStatus(
        id=file.id, state="edited" if edited else "applied", applied_at=mark.applied_at
    )


def _check_history(found: Sequence[MigrationStatus]) -> None:
    _check_none_missing(found)
    latest = max((each.id for each in found if each.state != "pending"), default="")
    for each in found:
        if each.state == "edited":
            raise wrong(
                f"{each.id}.sql was changed after it was applied",
                hint="restore the file as it was, and correct it by a new migration",
            )
        if each.state == "pending" and each.id < latest:
            raise wrong(
                f"{each.id}.sql is new, but {latest}, which comes after it, is applied",
                hint="give it a number after the last one",
            )


def _check_none_missing(found: Sequence[MigrationStatus]) -> None:
    missing = [each.id for each in found if each.state == "missing"]
    if missing:
        raise SchemaMismatchError(
            f"the database has migrations that this program does not: {', '.join(missing)}",
            hint="use the version of Arc-Halo that applied them, or a newer one",
        )


@contextmanager
def _exclusively(conn: Connection, lock_timeout: float) -> Iterator[None]:
    """The one transaction: nobody else migrates until it ends."""
    with translate(), conn.transaction():
        for statement in _BEGIN:
            conn.execute(statement)
        try_xact_lock(conn, LOCK, lock_timeout)
        conn.execute(SET_LOCK_TIMEOUT, {"milliseconds": str(max(1, round(lock_timeout * 1000)))})
        yield


def _apply(conn: Connection, files: Sequence[MigrationFile], waiting: Collection[str]) -> None:
    if not waiting:
        return
    from arc_halo.store.yoyo_tables import YoyoTables

    known = {file.id for file in files}
    scripts = [(file, parse(file, known)) for file in files if file.id in waiting]
    _check_names_are_free(conn, [script for _, script in scripts])
    tables = YoyoTables(conn)
    ensure_digests_table(conn)
    for file, script in scripts:
        started = time.perf_counter()
        _run(conn, script)
        tables.mark(file.id)
        record_digest(conn, file, duration_ms=(time.perf_counter() - started) * 1000)


def _roll_back(conn: Connection, undone: Sequence[MigrationFile]) -> None:
    if not undone:
        return
    from arc_halo.store.yoyo_tables import YoyoTables

    tables = YoyoTables(conn)
    ensure_digests_table(conn)
    for file in undone:
        _run(conn, parse_rollback(file))
        tables.unmark(file.id)
        forget_digest(conn, file.id)


@contextmanager
def _recorded(
    conn: Connection,
    files: Sequence[MigrationFile],
    marks: Mapping[str, Mark],
    changing: Collection[object],
) -> Iterator[None]:
    """Record what becomes of the schema inside; all of it, where none is that can be read."""
    if marks and wants_recording(conn):
        yield
        record_whole(conn, {name for file in files for name in _CREATES.findall(file.text)})
    elif changing:
        before = read_catalogue(conn)
        yield
        ensure_schema_table(conn)
        record_changes(conn, before, read_catalogue(conn))
    else:
        yield


def _take_over(conn: Connection, files: Sequence[MigrationFile], marks: Mapping[str, Mark]) -> None:
    """What stock yoyo applied is taken to be what its file says now."""
    for file in files:
        mark = marks.get(file.id)
        if mark is not None and mark.digest is None:
            ensure_digests_table(conn)
            record_digest(conn, file, duration_ms=None)


def _check_names_are_free(conn: Connection, scripts: Sequence[Script]) -> None:
    created = [
        match[1]
        for script in scripts
        for statement in script.statements
        if (match := _CREATES.match(statement.sql))
    ]
    with conn.cursor(row_factory=scalar_row) as cursor:
        taken = cursor.execute(TAKEN, {"names": created}).fetchall()
    if taken:
        raise SchemaMismatchError(
            f"the database has a {', '.join(map(repr, taken))} that Arc-Halo did not make",
            hint="use a database of its own for Arc-Halo, or rename what is there",
        )


def _run(conn: Connection, script: Script) -> None:
    for statement in script.statements:
        try:
            conn.execute(statement.sql.encode())
        except psycopg.Error as exc:
            raise _failed(script, statement, exc) from exc


def _failed(script: Script, statement: Statement, exc: psycopg.Error) -> DatabaseError:
    error = translated(exc)
    if isinstance(error, ConnectionFailedError):
        return error
    position = int(exc.diag.statement_position or 1) - 1
    # 42: the statement itself is wrong, unless it is only that this role may not run it.
    is_wrong = (exc.sqlstate or "").startswith("42") and exc.sqlstate != "42501"
    return DatabaseError(
        f"{script.where(statement.offset + position)}: {error.message}",
        code="AH042" if is_wrong else "AH044",
        hint=error.hint or "correct the file; nothing was changed",
    )
