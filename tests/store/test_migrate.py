"""The migration runner: all or nothing, nothing unnoticed, and in agreement with stock yoyo."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from arc_halo.errors import DatabaseError, LockNotHadError, NotFoundError, SchemaMismatchError
from arc_halo.store import migrate
from arc_halo.store.connection import Connection, connect
from arc_halo.store.migration_files import read_files, write_sum
from arc_halo.store.migration_scripts import parse, parse_rollback
from arc_halo.store.migration_sum import SUM_FILE

FAMILIES = [
    "0001.projects",
    "0002.tensors",
    "0003.models",
    "0004.reactors",
    "0005.training",
    "0006.inference",
]

Write = Callable[..., None]


@pytest.fixture
def empty(empty_database: str) -> Iterator[Connection]:
    with connect(empty_database) as conn:
        yield conn


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a migration and its rollback into `tmp_path`, and the sum anew."""

    def write(
        name: str, text: str, rollback: str = "SELECT 1;\n", verify: str | None = None
    ) -> None:
        (tmp_path / f"{name}.sql").write_text(text, encoding="utf-8")
        (tmp_path / f"{name}.rollback.sql").write_text(rollback, encoding="utf-8")
        if verify is not None:
            (tmp_path / f"{name}.verify.sql").write_text(verify, encoding="utf-8")
        write_sum(tmp_path)

    return write


@pytest.fixture
def two(tmp_path: Path, write: Write) -> Path:
    write("0001.one", "CREATE TABLE one (a int);\n", "DROP TABLE one;\n")
    write("0002.two", "-- depends: 0001.one\nCREATE TABLE two (a int);\n", "DROP TABLE two;\n")
    return tmp_path


def relations(conn: Connection) -> set[str]:
    query = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    return {name for (name,) in conn.execute(query)}


def states(conn: Connection, directory: Path | None = None) -> dict[str, str]:
    return {each.id: each.state for each in migrate.status(conn, directory=directory)}


# What is promised of our own files.


def test_up_applies_every_family_once(empty: Connection) -> None:
    assert migrate.up(empty) == FAMILIES
    assert migrate.up(empty) == []
    assert states(empty) == dict.fromkeys(FAMILIES, "applied")
    migrate.check(empty)


def test_down_leaves_nothing_but_the_marks_tables(empty: Connection) -> None:
    functions = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    migrate.up(empty)
    migrate.down(empty, to="0")
    marks = ("_yoyo", "arc_halo_migrations", "arc_halo_schema")
    left = {name for name in relations(empty) if not name.startswith(marks)}
    assert left == set()
    assert empty.execute(functions).fetchone() == (0,)
    assert migrate.pending(empty) == FAMILIES


def test_our_migrations_run_in_number_order_and_depend_backwards() -> None:
    files = read_files(migrate.migrations_directory())
    assert [file.id for file in files] == FAMILIES
    for file in files:
        assert parse(file, FAMILIES).statements
        assert parse_rollback(file).statements


# What it says and leaves alone.


def test_status_only_reads(empty: Connection) -> None:
    before = relations(empty)
    with empty.transaction():
        empty.execute("SET TRANSACTION READ ONLY")
        assert migrate.pending(empty) == FAMILIES
    assert relations(empty) == before


def test_status_knows_when_a_migration_was_applied(empty: Connection, two: Path) -> None:
    migrate.up(empty, directory=two, to="1")
    now = empty.execute("SELECT now()").fetchone()
    first, second = migrate.status(empty, directory=two)
    assert now is not None
    assert first.applied_at is not None
    assert abs((now[0] - first.applied_at).total_seconds()) < 60
    assert second == migrate.MigrationStatus(id="0002.two", state="pending")


def test_up_and_down_are_silent(empty: Connection, capfd: pytest.CaptureFixture[str]) -> None:
    notices: list[str | None] = []
    empty.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary))
    migrate.up(empty)
    migrate.down(empty, to="0")
    assert notices == []
    assert capfd.readouterr() == ("", "")


def test_the_callers_row_factory_does_not_matter(empty_database: str, two: Path) -> None:
    with psycopg.connect(
        empty_database, autocommit=True, row_factory=psycopg.rows.dict_row
    ) as conn:
        assert migrate.up(conn, directory=two) == ["0001.one", "0002.two"]  # type: ignore[arg-type]
        migrate.check(conn, directory=two)  # type: ignore[arg-type]
        assert migrate.down(conn, to="0", directory=two)  # type: ignore[arg-type]


@pytest.mark.parametrize("to", ["1", "0001", "0001.one"])
def test_a_target_may_be_a_number_or_a_name(empty: Connection, two: Path, to: str) -> None:
    assert migrate.up(empty, to=to, directory=two) == ["0001.one"]
    assert migrate.up(empty, directory=two) == ["0002.two"]
    assert migrate.down(empty, to=to, directory=two) == ["0002.two"]
    assert "one" in relations(empty)
    assert "two" not in relations(empty)


@pytest.mark.parametrize("to", ["7", "", "one"])
def test_an_unknown_target_is_refused(empty: Connection, two: Path, to: str) -> None:
    migrate.up(empty, directory=two)
    with pytest.raises(NotFoundError, match="no migration"):
        migrate.down(empty, to=to, directory=two)
    assert {"one", "two"} <= relations(empty)


def test_check_tells_an_empty_database_from_an_old_one(empty: Connection, two: Path) -> None:
    with pytest.raises(SchemaMismatchError, match="no Arc-Halo schema yet") as refused:
        migrate.check(empty, directory=two)
    assert refused.value.hint == "run 'arc-halo migrate up'"
    migrate.up(empty, directory=two, to="1")
    with pytest.raises(SchemaMismatchError, match=r"pending: 0002\.two"):
        migrate.check(empty, directory=two)


def test_check_refuses_a_database_of_a_newer_program(empty: Connection, two: Path) -> None:
    migrate.up(empty, directory=two)
    for path in two.glob("0002.*"):
        path.unlink()
    write_sum(two)
    assert states(empty, two) == {"0001.one": "applied", "0002.two": "missing"}
    for refuse in (migrate.check, migrate.up, partial(migrate.down, to="0")):
        with pytest.raises(SchemaMismatchError, match=r"0002\.two") as refused:
            refuse(empty, directory=two)
        assert refused.value.error_code == "AH041"
        assert "newer" in (refused.value.hint or "")


# Other people's tables.


def test_a_table_that_is_not_ours_is_never_touched(empty: Connection) -> None:
    empty.execute("CREATE TABLE models (theirs int)")
    with pytest.raises(SchemaMismatchError, match="'models'") as refused:
        migrate.up(empty)
    assert refused.value.error_code == "AH041"
    assert relations(empty) == {"models"}


def test_a_function_that_is_not_ours_is_named(empty: Connection) -> None:
    empty.execute("CREATE FUNCTION get_latest_checkpoint(text) RETURNS text RETURN $1")
    with pytest.raises(SchemaMismatchError, match="'get_latest_checkpoint'"):
        migrate.up(empty)


def test_other_peoples_yoyo_migrations_are_left_alone(empty: Connection, two: Path) -> None:
    migrate.up(empty, directory=two)
    empty.execute(
        "INSERT INTO _yoyo_migration VALUES ('theirs', '2020-their-own', now() AT TIME ZONE 'UTC')"
    )
    migrate.check(empty, directory=two)
    assert list(states(empty, two)) == ["0001.one", "0002.two"]


# All or nothing.


def test_a_failing_statement_is_located_and_leaves_nothing(
    empty: Connection, two: Path, write: Write
) -> None:
    before = relations(empty)
    write(
        "0003.bad",
        "-- depends: 0002.two\n\nCREATE TABLE fine (a int);\n\n"
        "-- a note: with a colon\nCREATE TABLE bad (\n    a int,\n    b intt\n);\n",
    )
    with pytest.raises(DatabaseError) as failed:
        migrate.up(empty, directory=two)
    assert f'{two}/0003.bad.sql:8:7: type "intt" does not exist' in str(failed.value)
    assert failed.value.error_code == "AH042"
    assert relations(empty) == before
    assert states(empty, two) == dict.fromkeys(["0001.one", "0002.two", "0003.bad"], "pending")


def test_a_failure_without_a_position_is_located_at_its_statement(
    empty: Connection, tmp_path: Path, write: Write
) -> None:
    write(
        "0001.one", "CREATE TABLE a (x int);\r\n\r\n  -- twice\r\n  INSERT INTO a SELECT 1/0;\r\n"
    )
    with pytest.raises(DatabaseError, match=r"0001\.one\.sql:4:3: division by zero") as failed:
        migrate.up(empty, directory=tmp_path)
    assert failed.value.error_code == "AH044"


def test_a_failing_rollback_keeps_everything(empty: Connection, two: Path, write: Write) -> None:
    write("0001.one", "CREATE TABLE one (a int);\n", "DROP TABLE oone;\n")
    migrate.up(empty, directory=two)
    with pytest.raises(DatabaseError, match=r"0001\.one\.rollback\.sql:1:1: table \"oone\""):
        migrate.down(empty, to="0", directory=two)
    assert {"one", "two"} <= relations(empty)
    migrate.check(empty, directory=two)


def test_two_concurrent_ups_apply_once(empty_database: str) -> None:
    together = threading.Barrier(2)
    applied: list[list[str]] = []

    def run() -> None:
        with connect(empty_database) as conn:
            together.wait()
            applied.append(migrate.up(conn))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [[], FAMILIES]


def test_who_waits_too_long_for_the_lock_is_told(empty_database: str, two: Path) -> None:
    with connect(empty_database) as one, connect(empty_database) as other, one.transaction():
        one.execute("SELECT pg_advisory_xact_lock(hashtextextended('arc-halo/migrate', 0))")
        with pytest.raises(LockNotHadError):
            migrate.up(other, lock_timeout=0.1, directory=two)
        assert not {"one", "two"} & relations(other)


def test_a_table_that_is_in_use_is_not_waited_for_long(empty_database: str, two: Path) -> None:
    with connect(empty_database) as one, connect(empty_database) as other:
        migrate.up(one, directory=two)
        with one.transaction():
            one.execute("SELECT FROM two")
            with pytest.raises(DatabaseError, match="lock timeout"):
                migrate.down(other, to="0", lock_timeout=0.1, directory=two)
        assert migrate.down(other, to="0", directory=two) == ["0002.two", "0001.one"]


UP_IN_A_PROCESS = """
import sys
from pathlib import Path
from arc_halo.store import migrate
from arc_halo.store.connection import connect
with connect(sys.argv[1], application_name="victim") as conn:
    migrate.up(conn, directory=Path(sys.argv[2]))
"""


def test_a_killed_up_leaves_nothing_and_no_lock(
    empty_database: str, empty: Connection, two: Path, write: Write
) -> None:
    write("0003.slow", "SELECT pg_sleep(0.2);\n" * 5)
    before = relations(empty)
    with subprocess.Popen(
        [sys.executable, "-c", UP_IN_A_PROCESS, empty_database, str(two)]
    ) as victim:
        _wait_until_it_sleeps(empty)
        victim.send_signal(signal.SIGKILL)
    assert relations(empty) == before
    assert migrate.up(empty, directory=two) == ["0001.one", "0002.two", "0003.slow"]


def _wait_until_it_sleeps(conn: Connection) -> None:
    query = """
        SELECT 1 FROM pg_stat_activity
        WHERE application_name = 'victim' AND wait_event = 'PgSleep'
    """
    deadline = time.monotonic() + 30
    while conn.execute(query).fetchone() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What yoyo would not have noticed.


def test_an_edit_of_an_applied_migration_is_noticed(
    empty: Connection, two: Path, write: Write
) -> None:
    migrate.up(empty, directory=two)
    write("0001.one", "CREATE TABLE one (a bigint);\n", "DROP TABLE one;\n")
    assert states(empty, two) == {"0001.one": "edited", "0002.two": "applied"}
    for refuse in (migrate.check, migrate.up):
        with pytest.raises(SchemaMismatchError, match=r"0001\.one\.sql was changed") as refused:
            refuse(empty, directory=two)
        assert refused.value.error_code == "AH042"


@pytest.mark.parametrize(
    "text", ["CREATE TABLE one (a int);", "\ufeffCREATE TABLE one (a int);  \r\n\r\n"]
)
def test_line_ends_and_blanks_are_no_edit(
    empty: Connection, two: Path, write: Write, text: str
) -> None:
    migrate.up(empty, directory=two)
    write("0001.one", text)
    migrate.check(empty, directory=two)


def test_a_file_with_a_byte_order_mark_is_read(
    empty: Connection, tmp_path: Path, write: Write
) -> None:
    write("0001.one", "\ufeff-- Umlaute: äöü\nCREATE TABLE one (a int);\n")
    assert migrate.up(empty, directory=tmp_path) == ["0001.one"]


def test_a_new_migration_before_an_applied_one_is_refused(
    empty: Connection, two: Path, write: Write
) -> None:
    write("0004.four", "CREATE TABLE four (a int);\n")
    migrate.up(empty, directory=two)
    write("0003.three", "CREATE TABLE three (a int);\n")
    with pytest.raises(SchemaMismatchError, match=r"0003\.three\.sql is new, but 0004\.four"):
        migrate.up(empty, directory=two)
    assert "three" not in relations(empty)


BAD_FILES = {
    "-- Depends: 0001.one\nSELECT 1;": r"0003\.bad\.sql:1:4: 'Depends:' is not read",
    "-- depend: 0001.one\nSELECT 1;": "'depend:' is not read",
    "SELECT 1;\n-- depends: 0001.one\nSELECT 2;": r"0003\.bad\.sql:2:4: 'depends:' is not read",
    "/* first */\n-- depends: 0001.one\nSELECT 1;": "'depends:' is not read",
    "-- transactional: maybe\nSELECT 1;": r"0003\.bad\.sql:1:4: 'transactional: maybe'",
    "-- depends: 0009.none\nSELECT 1;": r"bad\.sql:1:13: it depends on '0009\.none', which is no",
    "-- depends: 0003.bad\nSELECT 1;": r"depends on '0003\.bad'",
    "BEGIN;\nSELECT 1;\nCOMMIT;": r"0003\.bad\.sql:1:1: BEGIN in a migration",
    "SELECT 1;\n  /* done */ commit ;": r"0003\.bad\.sql:2:14: COMMIT in a migration",
    "SELECT 1;\nSTART TRANSACTION;": "START in a migration",
    "-- nothing but a comment\n": "no statement in it",
    "": "no statement in it",
}


@pytest.mark.parametrize("text", BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_bad_file_is_refused_before_anything_runs(
    empty: Connection, two: Path, write: Write, text: str
) -> None:
    write("0003.bad", text)
    with pytest.raises(SchemaMismatchError, match=BAD_FILES[text]) as refused:
        migrate.up(empty, directory=two)
    assert refused.value.error_code == "AH042"
    assert refused.value.hint
    assert "one" not in relations(empty)


def test_a_commit_inside_a_function_is_no_commit(
    empty: Connection, tmp_path: Path, write: Write
) -> None:
    write(
        "0001.one",
        "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$\nBEGIN\n    COMMIT;\nEND\n$$;\n"
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END;\n",
    )
    assert migrate.up(empty, directory=tmp_path) == ["0001.one"]
    assert empty.execute("SELECT f()").fetchone() == (2,)


def test_a_bad_rollback_is_refused(empty: Connection, two: Path, write: Write) -> None:
    write("0001.one", "CREATE TABLE one (a int);\n", "DROP TABLE one;\nCOMMIT;\n")
    migrate.up(empty, directory=two)
    with pytest.raises(SchemaMismatchError, match=r"rollback\.sql:2:1: COMMIT"):
        migrate.down(empty, to="0", directory=two)
    assert "two" in relations(empty)


def test_a_file_that_is_not_utf8_is_named(empty: Connection, two: Path) -> None:
    (two / "0002.two.sql").write_bytes(b"-- caf\xe9\nSELECT 1;\n")
    with pytest.raises(SchemaMismatchError, match=r"0002\.two\.sql:1:7: the byte 0xe9 is not UTF"):
        migrate.status(empty, directory=two)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("0002.two.rollback.sql", r"0002\.two\.sql: 0002\.two\.rollback\.sql is missing"),
        ("0002.two.sql", r"0002\.two\.rollback\.sql: 0002\.two\.sql is missing"),
    ],
)
def test_half_a_pair_is_refused(empty: Connection, two: Path, removed: str, message: str) -> None:
    (two / removed).unlink()
    with pytest.raises(SchemaMismatchError, match=message):
        migrate.up(empty, directory=two)


@pytest.mark.parametrize("name", ["two.sql", "0003-three.sql", "0003.three.py", "post-apply.sql"])
def test_a_file_named_otherwise_is_refused(empty: Connection, two: Path, name: str) -> None:
    (two / name).write_text("SELECT 1;\n")
    with pytest.raises(SchemaMismatchError, match=name):
        migrate.status(empty, directory=two)


def test_a_number_stands_once(empty: Connection, two: Path) -> None:
    for path in two.glob("0002.*"):
        shutil.copy(path, two / path.name.replace("two", "also"))
    with pytest.raises(
        SchemaMismatchError, match=r"0002\.two\.sql: 0002\.also\.sql has the same number"
    ):
        migrate.up(empty, directory=two)


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_an_empty_or_missing_directory_is_refused(
    empty: Connection, tmp_path: Path, name: str
) -> None:
    with pytest.raises(SchemaMismatchError, match="no migrations are there") as refused:
        migrate.up(empty, directory=tmp_path / name)
    assert "directory" in str(refused.value.hint)


def test_out_of_order_is_possible_when_it_is_asked_for(
    empty: Connection, two: Path, write: Write
) -> None:
    migrate.up(empty, directory=two)
    write("0000.zero", "CREATE TABLE zero (a int);\n", "DROP TABLE zero;\n")
    assert migrate.up(empty, directory=two, out_of_order=True) == ["0000.zero"]
    migrate.check(empty, directory=two)
    assert migrate.down(empty, directory=two, to="0001") == ["0002.two"]


def test_a_dry_run_finds_what_fails_and_keeps_nothing(
    empty: Connection, two: Path, write: Write
) -> None:
    before = relations(empty)
    with migrate.tried_up(empty, directory=two) as outcome:
        assert outcome.done == ["0001.one", "0002.two"]
        assert relations(empty) > before
    assert relations(empty) == before
    write("0003.bad", "CREATE TABLE two (a int);\n")
    with (
        pytest.raises(DatabaseError, match=r"0003\.bad\.sql:1:1"),
        migrate.tried_up(empty, directory=two),
    ):
        pass
    assert relations(empty) == before


# Verifying.


def test_a_verification_that_fails_undoes_everything_and_is_located(
    empty: Connection, two: Path, write: Write
) -> None:
    write(
        "0003.three",
        "CREATE TABLE three (a int);\n",
        verify="SELECT a FROM three;\n\n"
        "DO $$\nBEGIN\n    ASSERT 1 = 1;\n    ASSERT 1 = 2, 'no';\nEND $$;\n",
    )
    before = relations(empty)
    with pytest.raises(DatabaseError, match=r"0003\.three\.verify\.sql:6:5: no \(SQLSTATE P0004"):
        migrate.up(empty, directory=two)
    assert relations(empty) == before


def test_what_a_verification_writes_is_undone(
    empty: Connection, tmp_path: Path, write: Write
) -> None:
    write(
        "0001.one", "CREATE TABLE one (a int);\n", verify="INSERT INTO one SELECT 1;\nSELECT b;\n"
    )
    with pytest.raises(DatabaseError, match=r"0001\.one\.verify\.sql:2:8: column \"b\""):
        migrate.up(empty, directory=tmp_path)
    write("0001.one", "CREATE TABLE one (a int);\n", verify="INSERT INTO one SELECT 1;\n")
    assert migrate.up(empty, directory=tmp_path) == ["0001.one"]
    assert empty.execute("SELECT count(*) FROM one").fetchone() == (0,)


# The sum.


def test_our_sum_is_renewed() -> None:
    read_files(migrate.migrations_directory())


def _two_branches_merged_by_hand(directory: Path) -> None:
    lines = (directory / SUM_FILE).read_text().splitlines()
    (directory / SUM_FILE).write_text("\n".join([lines[0][:-1] + "x", *lines[1:], ""]))


BAD_SUMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "edited": (
        lambda d: (d / "0001.one.rollback.sql").write_text("SELECT 2;"),
        r"0001\.one\.rollback\.sql is not what arc_halo\.sum says",
    ),
    "new": (
        lambda d: (d / "0001.one.verify.sql").write_text("SELECT 2;"),
        r"0001\.one\.verify\.sql is not in arc_halo\.sum",
    ),
    "gone": (
        lambda d: [path.unlink() for path in d.glob("0002.*")],
        r"arc_halo\.sum:4:1: 0002\.two\.rollback\.sql is not there",
    ),
    "no sum": (lambda d: (d / SUM_FILE).unlink(), r"arc_halo\.sum is missing"),
    "merged": (_two_branches_merged_by_hand, r"arc_halo\.sum:1:1: the line does not fit"),
}


@pytest.mark.parametrize("case", BAD_SUMS)
def test_files_that_are_not_those_of_the_sum_are_refused(two: Path, case: str) -> None:
    spoil, message = BAD_SUMS[case]
    spoil(two)
    with pytest.raises(SchemaMismatchError, match=message) as refused:
        read_files(two)
    assert refused.value.error_code == "AH042"
    assert "arc-halo migrate sum --write" in (refused.value.hint or "")
    write_sum(two)
    read_files(two)


def test_two_branches_that_add_a_migration_conflict_in_git(two: Path, write: Write) -> None:
    def git(*arguments: str, code: int = 0) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", *who, *arguments]
        done = subprocess.run(command, cwd=two, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    git("init", "-q", "-b", "main")
    for branch, name in (("one", "0003.three"), ("two", "0004.four")):
        git("add", ".")
        git("commit", "-qm", "before", code=0 if branch == "one" else 1)
        git("checkout", "-qb", branch, "main" if branch == "two" else "HEAD")
        write(name, "SELECT 1;\n")
        git("add", ".")
        git("commit", "-qm", name)
    assert "arc_halo.sum" in git("merge", "one", code=1)


# Stock yoyo.


def yoyo(*arguments: str, database: str, directory: Path) -> list[str]:
    command = [sys.executable, "-m", "yoyo", *arguments, "--no-config-file", "--batch"]
    url = database.replace("postgresql://", "postgresql+psycopg://", 1)
    done = subprocess.run(
        [*command, "--database", url, str(directory)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_stock_yoyo_agrees_with_us(empty_database: str, empty: Connection) -> None:
    migrate.up(empty, to="0004")
    listed = yoyo("list", database=empty_database, directory=migrate.migrations_directory())
    assert [line.split()[:2] for line in listed[2:] if ".verify" not in line] == [
        *(["A", name] for name in FAMILIES[:4]),
        *(["U", name] for name in FAMILIES[4:]),
    ]
    assert {line.split()[0] for line in listed if ".verify" in line} == {"A"}


def test_what_stock_yoyo_applied_is_taken_over(
    empty_database: str, empty: Connection, two: Path, write: Write
) -> None:
    yoyo("apply", database=empty_database, directory=two)
    assert states(empty, two) == {"0001.one": "applied", "0002.two": "applied"}
    assert migrate.up(empty, directory=two) == []
    write("0002.two", "CREATE TABLE two (b int);\n")
    assert states(empty, two)["0002.two"] == "edited"


def test_what_stock_yoyo_rolled_back_is_pending(
    empty_database: str, empty: Connection, two: Path
) -> None:
    migrate.up(empty, directory=two)
    yoyo("rollback", "--revision", "0002.two", database=empty_database, directory=two)
    assert states(empty, two) == {"0001.one": "applied", "0002.two": "pending"}
    assert migrate.up(empty, directory=two) == ["0002.two"]
    migrate.check(empty, directory=two)


def test_an_installed_package_brings_its_migrations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "site-packages" / "arc_halo"
    shutil.copytree(migrate.migrations_directory(), package / "_migrations")
    monkeypatch.setattr(
        "arc_halo.store.migration_files.__file__", str(package / "store" / "migration_files.py")
    )
    assert migrate.migrations_directory() == package / "_migrations"
    assert [file.id for file in read_files(migrate.migrations_directory())] == FAMILIES
