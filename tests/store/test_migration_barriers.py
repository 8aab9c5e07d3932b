"""Migrations that no transaction may hold: run once, and recovered wherever they were killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arc_halo.errors import DatabaseError, LockNotHadError, SchemaMismatchError
from arc_halo.store import migrate
from arc_halo.store.connection import Connection, connect
from arc_halo.store.migration_files import write_sum
from arc_halo.store.schema_drift import schema_drift

FIRST, ALONE, LAST = "0001.first", "0002.alone", "0003.last"
INDEX = "CREATE INDEX CONCURRENTLY one_a ON one (a);\n"

Write = Callable[..., None]


@pytest.fixture
def empty(empty_database: str) -> Iterator[Connection]:
    with connect(empty_database) as conn:
        yield conn


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes `0002.alone`, by itself between two others, into `tmp_path`."""

    def write(text: str = INDEX, rollback: str = "DROP INDEX CONCURRENTLY one_a;\n") -> None:
        mark = "-- transactional: false\n"
        for name, forth, back in (
            (
                FIRST,
                "CREATE TABLE one (a int);\nINSERT INTO one VALUES (1);\n",
                "DROP TABLE one;\n",
            ),
            (ALONE, mark + text, mark + rollback),
            (LAST, "CREATE TABLE last (a int);\n", "DROP TABLE last;\n"),
        ):
            (tmp_path / f"{name}.sql").write_text(forth)
            (tmp_path / f"{name}.rollback.sql").write_text(back)
        write_sum(tmp_path)

    write()
    return write


def is_valid(conn: Connection, index: str = "one_a") -> bool | None:
    """Of an index that is not there, None."""
    query = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
    row = conn.execute(query, [index]).fetchone()
    return None if row is None else bool(row[0])


def unfinished(conn: Connection, directory: Path) -> list[str]:
    return [each.id for each in migrate.status(conn, directory=directory) if each.begun]


def wait_for(conn: Connection, query: str) -> None:
    deadline = time.monotonic() + 30
    while conn.execute(query.encode()).fetchone() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_stands_between_two_transactions_both_ways(
    empty: Connection, tmp_path: Path, write: Write
) -> None:
    assert migrate.up(empty, directory=tmp_path) == [FIRST, ALONE, LAST]
    assert is_valid(empty)
    assert schema_drift(empty) == ()
    migrate.check(empty, directory=tmp_path)
    assert migrate.down(empty, to="1", directory=tmp_path) == [LAST, ALONE]
    assert is_valid(empty) is None
    assert unfinished(empty, tmp_path) == []
    assert schema_drift(empty) == ()


def test_a_dry_run_tries_what_comes_before_it_and_keeps_nothing(
    empty: Connection, tmp_path: Path, write: Write
) -> None:
    with migrate.tried_up(empty, directory=tmp_path) as outcome:
        assert (outcome.done, outcome.untried) == ([FIRST], [ALONE, LAST])
    assert empty.execute("SELECT to_regclass('one')").fetchone() == (None,)


def test_two_at_once_run_it_once(empty_database: str, tmp_path: Path, write: Write) -> None:
    together, applied = threading.Barrier(2), list[list[str]]()

    def run() -> None:
        with connect(empty_database) as conn:
            together.wait()
            applied.append(migrate.up(conn, directory=tmp_path))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(id for ids in applied for id in ids) == [FIRST, ALONE, LAST]


def test_what_fails_is_located_and_run_again_when_it_is_corrected(
    empty: Connection, tmp_path: Path, write: Write
) -> None:
    write("CREATE UNIQUE INDEX CONCURRENTLY one_a\n    ON one (a);\nVACUUM one;\nVACUUM oone;\n")
    migrate.up(empty, directory=tmp_path, to="1")
    empty.execute("INSERT INTO one VALUES (1)")
    with pytest.raises(DatabaseError, match=r"0002\.alone\.sql:2:1: could not create unique") as no:
        migrate.up(empty, directory=tmp_path)
    assert "goes on here" in (no.value.hint or "")
    assert (unfinished(empty, tmp_path), is_valid(empty)) == ([ALONE], False)
    empty.execute("DELETE FROM one")
    with pytest.raises(DatabaseError, match=r"0002\.alone\.sql:5:1: relation \"oone\" does not"):
        migrate.up(empty, directory=tmp_path)
    assert is_valid(empty)
    write("CREATE UNIQUE INDEX CONCURRENTLY one_a\n    ON one (a);\nVACUUM one;\n")
    with pytest.raises(SchemaMismatchError, match="changed after it had begun"):
        migrate.up(empty, directory=tmp_path)
    assert migrate.down(empty, directory=tmp_path, to="1") == [ALONE]
    assert migrate.up(empty, directory=tmp_path) == [ALONE, LAST]


def test_a_file_that_had_no_effect_may_be_corrected_and_run_by_another_session(
    empty_database: str, empty: Connection, tmp_path: Path, write: Write
) -> None:
    write("VACUUM oone;\n")
    with pytest.raises(DatabaseError, match='"oone"'):
        migrate.up(empty, directory=tmp_path)
    write("VACUUM one;\n")
    with connect(empty_database) as other:
        assert migrate.up(other, directory=tmp_path, lock_timeout=0.1) == [ALONE, LAST]


def test_a_verification_that_fails_leaves_it_unmarked_and_is_tried_again(
    empty: Connection, tmp_path: Path, write: Write
) -> None:
    verify = tmp_path / f"{ALONE}.verify.sql"
    for text in ("SELECT 1 / 0;\n", "SELECT 1;\n"):
        verify.write_text(text)
        write()
        if "0" in text:
            with pytest.raises(DatabaseError, match=r"0002\.alone\.verify\.sql:1:1: division"):
                migrate.up(empty, directory=tmp_path)
            assert unfinished(empty, tmp_path) == [ALONE]
    assert migrate.up(empty, directory=tmp_path) == [ALONE, LAST]


# Killed.

UP_IN_A_PROCESS = """
import sys
from pathlib import Path
from arc_halo.store import migrate
from arc_halo.store.connection import connect
with connect(sys.argv[1], application_name="victim") as conn:
    migrate.up(conn, directory=Path(sys.argv[2]))
"""


@contextmanager
def killed_in_the_middle(url: str, conn: Connection, directory: Path) -> Iterator[None]:
    """`up`, killed while its statement waits for a transaction, which lasts until the end."""
    migrate.up(conn, directory=directory, to="1")
    with connect(url) as other, other.transaction():
        other.execute("INSERT INTO one VALUES (2)")
        command = [sys.executable, "-c", UP_IN_A_PROCESS, url, str(directory)]
        with subprocess.Popen(command) as victim:
            waiting = "application_name = 'victim' AND wait_event_type = 'Lock'"
            wait_for(conn, f"SELECT FROM pg_stat_activity WHERE {waiting}")
            victim.send_signal(signal.SIGKILL)
        yield


def end_session(conn: Connection) -> None:
    """The server is told that the victim is dead, which it has not noticed."""
    victim = "FROM pg_stat_activity WHERE application_name = 'victim'"
    conn.execute(f"SELECT pg_terminate_backend(pid) {victim}".encode())
    wait_for(conn, f"SELECT WHERE NOT EXISTS (SELECT {victim})")


def test_an_index_left_invalid_is_dropped_and_made_again(
    empty_database: str, empty: Connection, tmp_path: Path, write: Write
) -> None:
    with killed_in_the_middle(empty_database, empty, tmp_path):
        end_session(empty)
    assert (unfinished(empty, tmp_path), is_valid(empty)) == ([ALONE], False)
    assert migrate.pending(empty, directory=tmp_path) == [ALONE, LAST]
    assert migrate.up(empty, directory=tmp_path) == [ALONE, LAST]
    assert is_valid(empty)
    assert schema_drift(empty) == ()


def test_a_session_that_goes_on_after_its_program_died_is_waited_for(
    empty_database: str, empty: Connection, tmp_path: Path, write: Write
) -> None:
    with killed_in_the_middle(empty_database, empty, tmp_path):
        with pytest.raises(LockNotHadError, match=r"0002\.alone is being run by another") as busy:
            migrate.up(empty, directory=tmp_path, lock_timeout=0.1)
        assert "pg_terminate_backend" in (busy.value.hint or "")
        before = empty.execute("SELECT 'one_a'::regclass::oid").fetchone()
        empty.execute("CREATE TABLE theirs (a int)")
    assert migrate.up(empty, directory=tmp_path) == [ALONE, LAST]
    assert is_valid(empty)
    assert empty.execute("SELECT 'one_a'::regclass::oid").fetchone() == before
    empty.execute("DROP TABLE theirs")
    assert schema_drift(empty) == ()


def test_where_nothing_tells_it_stops_and_says_what_to_do(
    empty_database: str, empty: Connection, tmp_path: Path, write: Write
) -> None:
    write("REINDEX INDEX CONCURRENTLY one_a;\n")
    migrate.up(empty, directory=tmp_path, to="1")
    empty.execute("CREATE INDEX one_a ON one (a)")
    with killed_in_the_middle(empty_database, empty, tmp_path):
        end_session(empty)
    with pytest.raises(DatabaseError, match=r"0002\.alone\.sql:2:1: an earlier run") as stopped:
        migrate.up(empty, directory=tmp_path)
    assert stopped.value.error_code == "AH045"
    assert f"arc-halo migrate repair {ALONE} --reason TEXT" in (stopped.value.hint or "")
