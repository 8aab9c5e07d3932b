"""Carrying migrations out: all that can in one transaction, the others alone between two of them.

Nobody else migrates meanwhile. A transaction holds the migrations' lock; what runs outside of one
is guarded by its row in `arc_halo_migrations_begun`, which is written before it and goes with its
mark.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from arc_halo.errors import ArcHaloError, ConnectionFailedError, LockNotHadError
from arc_halo.store import roles
from arc_halo.store.catalogue import SchemaObject, read_catalogue
from arc_halo.store.connection import Connection, translate
from arc_halo.store.locks import limit_waiting, try_xact_lock
from arc_halo.store.migration_begun import (
    Begun,
    Direction,
    begin,
    ensure_begun_table,
    finish,
    forget_begun,
    note_done,
    note_failed,
    read_begun,
    release,
)
from arc_halo.store.migration_files import MigrationFile
from arc_halo.store.migration_marks import (
    Mark,
    ensure_digests_table,
    forget_digest,
    read_marks,
    record_digest,
)
from arc_halo.store.migration_recovery import recover
from arc_halo.store.migration_scripts import (
    Script,
    Statement,
    created_names,
    parse,
    parse_rollback,
    parse_verify,
)
from arc_halo.store.migration_statements import failed, run_script
from arc_halo.store.migration_text import digest, wrong
from arc_halo.store.schema_drift import (
    ensure_schema_table,
    record_changes,
    record_whole,
    wants_recording,
)

LOCK = "arc-halo/migrate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One migration to be applied or rolled back."""

    file: MigrationFile
    direction: Direction
    script: Script
    verify: Script | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The ids of what was carried out, in order, and of what a dry run could not try."""

    done: list[str]
    untried: list[str]


Choose = Callable[[Mapping[str, Mark], Begun | None], Sequence[Step]]


def apply_step(file: MigrationFile, known: Collection[str]) -> Step:
    script, verify = parse(file, known), parse_verify(file)
    return Step(file=file, direction="up", script=script, verify=verify)


def roll_back_step(file: MigrationFile) -> Step:
    return Step(file=file, direction="down", script=parse_rollback(file))


def carry_out(
    conn: Connection, files: Sequence[MigrationFile], choose: Choose, *, lock_timeout: float
) -> list[str]:
    """Carry out the steps that `choose` takes, looking at the database when the lock is had."""
    done: list[str] = []
    deadline = time.monotonic() + lock_timeout
    while True:
        with exclusively(conn, lock_timeout):
            turn = _take_turn(conn, files, choose)
        if isinstance(turn, Begun):
            _wait(turn, deadline)
            continue
        done += [step.file.id for step in turn.batch]
        if turn.alone is None:
            return done
        _run_alone(conn, files, turn.alone, lock_timeout)
        done.append(turn.alone.step.file.id)
        deadline = time.monotonic() + lock_timeout


@contextmanager
def tried(
    conn: Connection, files: Sequence[MigrationFile], choose: Choose, *, lock_timeout: float
) -> Iterator[Outcome]:
    """A transaction with the steps up to the first that needs none; it is rolled back."""
    deadline = time.monotonic() + lock_timeout
    while True:
        with exclusively(conn, lock_timeout, dry_run=True):
            turn = _take_turn(conn, files, choose, dry_run=True)
            if not isinstance(turn, Begun):
                done, untried = ([s.file.id for s in each] for each in (turn.batch, turn.untried))
                yield Outcome(done=done, untried=untried)
                return
        _wait(turn, deadline)


@contextmanager
def exclusively(conn: Connection, lock_timeout: float, *, dry_run: bool = False) -> Iterator[None]:
    """A transaction during which nobody else migrates; one that is rolled back in a dry run."""
    with translate(), conn.transaction(force_rollback=dry_run):
        for statement in _BEGIN:
            conn.execute(statement)
        try_xact_lock(conn, LOCK, lock_timeout)
        limit_waiting(conn, lock_timeout)
        yield


_BEGIN = (
    # A stricter level would look at the database as it was before the lock was had.
    sql.SQL("SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE"),
    sql.SQL("SET LOCAL client_min_messages = warning"),
)

_jitter = random.Random()
"""Not the program's generator: what it draws must not depend on how long it waited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alone:
    """A step that no transaction may hold, how far an earlier run came, and the schema before."""

    step: Step
    resumed: Begun | None
    before: Sequence[SchemaObject] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """What one transaction did, and what is to be done alone after it."""

    batch: Sequence[Step]
    alone: _Alone | None
    untried: Sequence[Step]


def _take_turn(
    conn: Connection, files: Sequence[MigrationFile], choose: Choose, *, dry_run: bool = False
) -> _Turn | Begun:
    """Run what one transaction can, and begin what comes next; or what another session runs."""
    marks, begun = read_marks(conn), read_begun(conn)
    if begun is not None and begun.is_running:
        return begun
    steps = choose(marks, begun)
    _check_text(steps, begun)
    batch, rest = _split(steps)
    _run_batch(conn, files, marks, batch)
    alone = None if dry_run or not rest else _begin_alone(conn, rest[0], begun)
    if steps:
        roles.refresh(conn, created_names(files))
    return _Turn(batch=batch, alone=alone, untried=rest)


def _split(steps: Sequence[Step]) -> tuple[Sequence[Step], Sequence[Step]]:
    """Those that one transaction carries out, and what follows, which begins with one alone."""
    for index, step in enumerate(steps):
        if not step.script.is_transactional:
            return steps[:index], steps[index:]
    return steps, []


def _run_batch(
    conn: Connection,
    files: Sequence[MigrationFile],
    marks: Mapping[str, Mark],
    batch: Sequence[Step],
) -> None:
    with _recorded(conn, files, marks, batch):
        for step in batch:
            started = time.perf_counter()
            run_script(conn, step.script)
            _mark(conn, step, (time.perf_counter() - started) * 1000)
            forget_begun(conn, step.file.id)
    _take_over(conn, files, marks)


def _mark(conn: Connection, step: Step, duration_ms: float | None) -> None:
    """Verify what was done, and remember that it was."""
    from arc_halo.store.yoyo_tables import YoyoTables

    if step.verify is not None:
        with conn.transaction(force_rollback=True):
            run_script(conn, step.verify)
    tables = YoyoTables(conn)
    ensure_tables(conn)
    change = tables.mark if step.direction == "up" else tables.unmark
    change(step.file.id)
    if step.file.verify is not None:  # to yoyo, it is one more migration
        change(step.file.verify_path.stem)
    if step.direction == "up":
        record_digest(conn, step.file, duration_ms=duration_ms)
    else:
        forget_digest(conn, step.file.id)


def ensure_tables(conn: Connection) -> None:
    """The tables in which we remember things of migrations."""
    ensure_digests_table(conn)
    ensure_begun_table(conn)
    ensure_schema_table(conn)


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
        ensure_tables(conn)
        record_whole(conn, created_names(files))
    elif changing:
        before = read_catalogue(conn)
        yield
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


def _check_text(steps: Sequence[Step], begun: Begun | None) -> None:
    """Raise when the file that was begun is another one now, and some of it had its effect."""
    for step in steps:
        if begun is None or (step.file.id, step.direction) != (begun.id, begun.direction):
            continue
        is_same = digest(step.script.text) == begun.digest
        if not is_same and (begun.statements_done or not begun.is_settled):
            raise wrong(
                f"{step.script.path} was changed after it had begun to run",
                hint=f"restore it, or say `arc-halo migrate repair {begun.id} --reason TEXT`",
            )


def _begin_alone(conn: Connection, step: Step, begun: Begun | None) -> _Alone:
    if begun is not None and begun.id != step.file.id:
        raise wrong(f"{begun.id} was begun, and is not finished", hint="finish it first")
    ensure_tables(conn)
    begin(conn, step.file.id, step.direction, digest(step.script.text))
    resumed = begun if begun is not None and begun.direction == step.direction else None
    # Of an earlier run, nobody knows what was there before it.
    return _Alone(
        step=step, resumed=resumed, before=read_catalogue(conn) if begun is None else None
    )


def _run_alone(
    conn: Connection, files: Sequence[MigrationFile], alone: _Alone, lock_timeout: float
) -> None:
    """Run the statements one by one, each committed by itself, and mark the migration."""
    started = time.perf_counter()
    try:
        _run_statements(conn, alone)
        with exclusively(conn, lock_timeout):
            finish(conn, alone.step.file.id)
            _mark(conn, alone.step, (time.perf_counter() - started) * 1000)
            roles.refresh(conn, created_names(files))
            if alone.before is None:
                record_whole(conn, created_names(files))
            else:
                record_changes(conn, alone.before, read_catalogue(conn), names=created_names(files))
    except ArcHaloError:
        if not conn.closed:
            release(conn, alone.step.file.id)
        raise


def _run_statements(conn: Connection, alone: _Alone) -> None:
    step, resumed = alone.step, alone.resumed
    first = resumed.statements_done if resumed else 0
    with translate():
        for number, statement in enumerate(step.script.statements[first:], start=first):
            _run_one(conn, step, number, statement, resumed if number == first else None)


def _run_one(
    conn: Connection, step: Step, number: int, statement: Statement, resumed: Begun | None
) -> None:
    try:
        if resumed is None or recover(conn, step.script, statement, resumed) == "run":
            conn.execute(statement.sql.encode())
    except psycopg.Error as exc:
        error = failed(step.script, statement, exc, _ALONE)
        if not isinstance(error, ConnectionFailedError):
            note_failed(conn, step.file.id, number)
        raise error from exc
    note_done(conn, step.file.id, number + 1)


_ALONE = "what came before it is committed; when the cause is gone, the same command goes on here"


def _wait(begun: Begun, deadline: float) -> None:
    """Let the session that runs a migration go on for a moment."""
    if time.monotonic() > deadline:
        raise LockNotHadError(
            f"{begun.id} is being run by another session (pid {begun.pid}, from {begun.host}, "
            f"since {begun.begun_at:%Y-%m-%d %H:%M:%S%z})",
            hint="wait until it is done; if its program is dead, "
            f"`SELECT pg_terminate_backend({begun.pid})` ends it, and the same command goes on",
        )
    time.sleep(0.2 * _jitter.uniform(0.5, 1.0))
