"""What is not as migrations left it is accepted with a reason, and who gave it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.store import migrate
from arc_halo.store.connection import Connection, connect
from arc_halo.store.migration_files import write_sum
from arc_halo.store.migration_repair import accept_drift, repair
from arc_halo.store.schema_drift import schema_drift


@pytest.fixture
def migrated(empty_database: str, tmp_path: Path) -> Iterator[Connection]:
    """A database in which `tmp_path` is applied: `0001.one`."""
    write(tmp_path, "0001.one", "CREATE TABLE one (a int);\nCREATE INDEX one_a ON one (a);\n")
    with connect(empty_database) as conn:
        migrate.up(conn, directory=tmp_path)
        yield conn


def write(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.sql").write_text(text)
    (directory / f"{name}.rollback.sql").write_text("SELECT 1;\n")
    write_sum(directory)


def log(conn: Connection) -> list[tuple[object, ...]]:
    columns = "migration_id, operation, username, comment"
    query = f"SELECT {columns} FROM _yoyo_log WHERE comment IS NOT NULL ORDER BY created_at_utc"
    return conn.execute(query.encode()).fetchall()


def test_an_edited_text_is_accepted_with_who_and_why(migrated: Connection, tmp_path: Path) -> None:
    applied = migrate.status(migrated, directory=tmp_path)
    write(tmp_path, "0001.one", "CREATE TABLE one (a int); -- the first\n")
    assert repair(migrated, "1", reason="a comment", by="ann", directory=tmp_path) == "0001.one"
    assert migrate.status(migrated, directory=tmp_path) == applied
    assert log(migrated) == [("0001.one", "repair", "ann", "a comment")]


def test_what_needs_no_repair_is_not_repaired(migrated: Connection, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing of 0001\.one"):
        repair(migrated, "1", reason="why not", by="ann", directory=tmp_path)
    with pytest.raises(NotFoundError, match="was not interrupted"):
        repair(migrated, "1", reason="x", by="ann", statement="done", directory=tmp_path)
    with pytest.raises(NotFoundError, match="as the migrations made it"):
        accept_drift(migrated, reason="why not", by="ann", directory=tmp_path)
    assert log(migrated) == []


@pytest.mark.parametrize("reason", ["", " ", "x" * 256])
def test_a_reason_is_a_sentence(migrated: Connection, tmp_path: Path, reason: str) -> None:
    with pytest.raises(InvalidInputError):
        repair(migrated, "1", reason=reason, by="ann", directory=tmp_path)


def test_drift_that_is_accepted_is_none_any_more(migrated: Connection, tmp_path: Path) -> None:
    migrated.execute("ALTER TABLE one ADD b int; CREATE TABLE theirs (a int)")
    (change,) = accept_drift(migrated, reason="for reports", by="ann", directory=tmp_path)
    assert (change.object, schema_drift(migrated)) == ("column one.b", ())
    assert log(migrated) == [(None, "accept", "ann", "for reports")]
    migrated.execute("ALTER TABLE one DROP b")
    assert [str(change) for change in schema_drift(migrated)] == ["column one.b was removed"]


@pytest.mark.parametrize(("found", "made_anew"), [("done", False), ("again", True)])
def test_a_statement_that_was_looked_after_is_passed_over_or_run_again(
    migrated: Connection, tmp_path: Path, found: Literal["done", "again"], made_anew: bool
) -> None:
    write(tmp_path, "0002.again", "-- transactional: false\nSELECT 1 / 0;\nVACUUM one;\n")
    with pytest.raises(Exception, match="division"):
        migrate.up(migrated, directory=tmp_path)
    migrated.execute("UPDATE arc_halo_migrations_begun SET is_settled = false")
    text = "-- transactional: false\nCREATE TABLE made_anew (a int);\nVACUUM one;\n"
    write(tmp_path, "0002.again", text)
    repair(migrated, "2", reason="looked", by="ann", statement=found, directory=tmp_path)
    assert migrate.up(migrated, directory=tmp_path) == ["0002.again"]
    there = migrated.execute("SELECT to_regclass('made_anew') IS NOT NULL").fetchone()
    assert there == (made_anew,)


def test_an_interrupted_migration_whose_file_is_the_same_needs_a_finding(
    migrated: Connection, tmp_path: Path
) -> None:
    write(tmp_path, "0002.again", "-- transactional: false\nSELECT 1 / 0;\n")
    with pytest.raises(Exception, match="division"):
        migrate.up(migrated, directory=tmp_path)
    with pytest.raises(NotFoundError, match="as it was when it began") as refused:
        repair(migrated, "2", reason="looked", by="ann", directory=tmp_path)
    assert "--statement done|again" in (refused.value.hint or "")
