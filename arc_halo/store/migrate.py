"""The migration runner: yoyo's files and tables, all pending migrations in one transaction.

yoyo commits a migration and its mark apart, and knows a file by its name alone. Here the
migrations, their marks in yoyo's tables, the digests of their texts and the record of the schema
commit together or not at all, on the caller's connection. Those that no transaction may hold
(`-- transactional: false`) stand between two such transactions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from psycopg.rows import scalar_row

from arc_halo.errors import NotFoundError, SchemaMismatchError
from arc_halo.store.connection import Connection, translate
from arc_halo.store.migration_begun import Begun, read_begun
from arc_halo.store.migration_files import MigrationFile, read_files
from arc_halo.store.migration_files import migrations_directory as migrations_directory
from arc_halo.store.migration_marks import Mark, read_marks
from arc_halo.store.migration_runs import (
    Choose,
    Outcome,
    Step,
    apply_step,
    carry_out,
    roll_back_step,
    tried,
)
from arc_halo.store.migration_scripts import created_names
from arc_halo.store.migration_text import wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationStatus:
    """One migration: `edited` when its file changed after it ran, `missing` when it has none.

    `begun` is set where it runs outside of a transaction now, or was interrupted in that.
    """

    id: str
    state: Literal["applied", "pending", "edited", "missing"]
    applied_at: datetime | None = None
    begun: Begun | None = None


def status(conn: Connection, *, directory: Path | None = None) -> list[MigrationStatus]:
    """Every migration by number. Only reads, and works on an empty database too."""
    files = read(directory)
    with translate():
        return compare(files, read_marks(conn), read_begun(conn))


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


def check_names_are_free(
    conn: Connection, found: Sequence[MigrationStatus], *, directory: Path | None = None
) -> None:
    """Raise `SchemaMismatchError` where a pending one of `found` creates what is there already.

    That is not ours. `up` checks the same; whoever only plans, or examines, does not come to it.
    """
    waiting = {each.id for each in found if each.state == "pending" and each.begun is None}
    if waiting:
        _check_names(conn, [file for file in read(directory) if file.id in waiting])


def up(
    conn: Connection,
    *,
    to: str | None = None,
    lock_timeout: float = 10.0,
    directory: Path | None = None,
    out_of_order: bool = False,
) -> list[str]:
    """Apply what is pending, up to and including `to` (`3`, `0003` or the whole id); its ids.

    One transaction: all of it, or none and an error that names file, line and column. A migration
    that is not transactional divides it; what came before that is committed first. `conn` is in
    autocommit mode and direct, not a pooler's. `lock_timeout`, in seconds, bounds the wait for
    another migration and for each table.
    """
    files = read(directory)
    return carry_out(
        conn, files, _pending_of(conn, files, to, out_of_order), lock_timeout=lock_timeout
    )


@contextmanager
def tried_up(
    conn: Connection,
    *,
    to: str | None = None,
    lock_timeout: float = 10.0,
    directory: Path | None = None,
    out_of_order: bool = False,
) -> Iterator[Outcome]:
    """As `up`, but for as long as the `with` lasts: then everything is undone.

    What cannot run in a transaction is not tried, and nothing that comes after it.
    """
    files = read(directory)
    choose = _pending_of(conn, files, to, out_of_order)
    with tried(conn, files, choose, lock_timeout=lock_timeout) as outcome:
        yield outcome


def down(
    conn: Connection, *, to: str, lock_timeout: float = 10.0, directory: Path | None = None
) -> list[str]:
    """Roll back what came after `to`, which itself stays, latest first; `0` leaves nothing.

    As `up`, in one transaction. What the dropped tables held is lost.
    """
    files = read(directory)
    return carry_out(conn, files, _undone_by(files, to), lock_timeout=lock_timeout)


@contextmanager
def tried_down(
    conn: Connection, *, to: str, lock_timeout: float = 10.0, directory: Path | None = None
) -> Iterator[Outcome]:
    """As `down`, but for as long as the `with` lasts, as `tried_up`."""
    files = read(directory)
    with tried(conn, files, _undone_by(files, to), lock_timeout=lock_timeout) as outcome:
        yield outcome


def read(directory: Path | None) -> list[MigrationFile]:
    """The migrations in `directory`, or this program's."""
    return read_files(migrations_directory() if directory is None else directory)


def find(files: Sequence[MigrationFile], to: str) -> MigrationFile:
    """The one that a user means by `3`, `0003` or the whole id."""
    for file in files:
        if to == file.id or to.zfill(4) == file.id[:4]:
            return file
    known = ", ".join(file.id for file in files)
    raise NotFoundError(f"there is no migration {to!r}", hint=f"there are {known}")


def compare(
    files: Sequence[MigrationFile], marks: Mapping[str, Mark], begun: Begun | None
) -> list[MigrationStatus]:
    """How files and marks fit together."""
    known = {file.id for file in files}
    # A mark without a digest that fits no file is of somebody else who uses yoyo here.
    missing = {
        mark.id: mark.applied_at
        for mark in marks.values()
        if mark.digest is not None and mark.id not in known
    }
    if begun is not None and begun.id not in known:
        missing.setdefault(begun.id, begun.begun_at)
    gone = [MigrationStatus(id=id, state="missing", applied_at=at) for id, at in missing.items()]
    there = [_state(file, marks.get(file.id), begun) for file in files]
    return sorted([*gone, *there], key=lambda each: each.id)


TAKEN = """
SELECT relname::text AS name FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relname = ANY(%(names)s)
UNION ALL
SELECT proname::text FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace AND proname = ANY(%(names)s)
ORDER BY name
"""


def _pending_of(
    conn: Connection, files: Sequence[MigrationFile], to: str | None, out_of_order: bool
) -> Choose:
    """Chooses what is pending, up to and including `to`."""
    known = {file.id for file in files}
    last = files[-1].id if to is None else find(files, to).id

    def choose(marks: Mapping[str, Mark], begun: Begun | None) -> list[Step]:
        found = compare(files, marks, begun)
        _check_history(found, out_of_order=out_of_order)
        waiting = {each.id for each in found if each.state == "pending" and each.id <= last}
        steps = [apply_step(file, known) for file in files if file.id in waiting]
        _check_names(
            conn, [step.file for step in steps if begun is None or step.file.id != begun.id]
        )
        return steps

    return choose


def _undone_by(files: Sequence[MigrationFile], to: str) -> Choose:
    """Chooses what is applied and came after `to`, the latest first."""
    kept = "" if re.fullmatch("0+", to) else find(files, to).id

    def choose(marks: Mapping[str, Mark], begun: Begun | None) -> list[Step]:
        found = compare(files, marks, begun)
        _check_none_missing(found)
        applied = {each.id for each in found if each.state != "pending" or each.begun}
        undone = [file for file in reversed(files) if file.id in applied and file.id > kept]
        return [roll_back_step(file) for file in undone]

    return choose


def _state(file: MigrationFile, mark: Mark | None, begun: Begun | None) -> MigrationStatus:
    its = begun if begun is not None and begun.id == file.id else None
    if mark is None:
        return MigrationStatus(id=file.id, state="pending", begun=its)
    edited = mark.digest not in (None, file.digest)
    return MigrationStatus(
        id=file.id, state="edited" if edited else "applied", applied_at=mark.applied_at, begun=its
    )


def _check_history(found: Sequence[MigrationStatus], *, out_of_order: bool = False) -> None:
    _check_none_missing(found)
    latest = max((each.id for each in found if each.state != "pending"), default="")
    for each in found:
        if each.state == "edited":
            raise wrong(
                f"{each.id}.sql was changed after it was applied",
                hint="restore the file as it was, and correct it by a new migration; or accept "
                f"it: `arc-halo migrate repair {each.id} --reason TEXT`",
            )
        if each.begun is not None and each.begun.direction == "down":
            raise wrong(
                f"the rollback of {each.id} was begun, and is not finished",
                hint="finish it by the same `arc-halo migrate down`",
            )
        if each.state == "pending" and each.id < latest and not out_of_order:
            raise wrong(
                f"{each.id}.sql is new, but {latest}, which comes after it, is applied",
                hint="give it a number after the last one, or say `--allow-out-of-order`",
            )


def _check_none_missing(found: Sequence[MigrationStatus]) -> None:
    missing = [each.id for each in found if each.state == "missing"]
    if missing:
        raise SchemaMismatchError(
            f"the database has migrations that this program does not: {', '.join(missing)}",
            hint="use the version of Arc-Halo that applied them, or a newer one",
        )


def _check_names(conn: Connection, fresh: Sequence[MigrationFile]) -> None:
    with conn.cursor(row_factory=scalar_row) as cursor:
        taken = cursor.execute(TAKEN, {"names": list(created_names(fresh))}).fetchall()
    if taken:
        raise SchemaMismatchError(
            f"the database has a {', '.join(map(repr, taken))} that Arc-Halo did not make",
            hint="use a database of its own for Arc-Halo, or rename what is there",
        )
