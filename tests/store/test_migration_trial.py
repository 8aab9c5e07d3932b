"""Migrations are tried up, down and up again on a database that is gone afterwards."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from arc_halo.errors import DatabaseError, RefusedError
from arc_halo.store.connection import connect
from arc_halo.store.migration_files import write_sum
from arc_halo.store.migration_trial import scratch_database, try_migrations


def exists(url: str, database: str) -> bool:
    with connect(url) as conn:
        query = "SELECT FROM pg_database WHERE datname = %s"
        return conn.execute(query, [database]).fetchone() is not None


def fail_on_a_scratch_database(url: str, directory: Path, names: list[str]) -> None:
    with scratch_database(url) as conn:
        names.append(conn.info.dbname)
        assert exists(url, *names)
        try_migrations(conn, directory=directory)


def write(directory: Path, name: str, text: str, rollback: str) -> None:
    (directory / f"{name}.sql").write_text(text)
    (directory / f"{name}.rollback.sql").write_text(rollback)
    write_sum(directory)


def test_our_migrations_leave_nothing_behind(server_url: str) -> None:
    with scratch_database(server_url) as conn:
        assert try_migrations(conn) == ()


def test_what_a_rollback_leaves_is_told_with_its_file(server_url: str, tmp_path: Path) -> None:
    write(tmp_path, "0001.one", "CREATE TABLE one (a int);\n", "DROP TABLE one;\n")
    write(
        tmp_path,
        "0002.two",
        "ALTER TABLE one ADD IF NOT EXISTS b int;\nALTER TABLE one ALTER a SET NOT NULL;\n",
        "ALTER TABLE one ALTER a DROP NOT NULL;\nALTER TABLE one ALTER a TYPE bigint;\n",
    )
    with scratch_database(server_url) as conn:
        assert [str(each) for each in try_migrations(conn, directory=tmp_path)] == [
            "0002.two.rollback.sql: column one.a was changed: integer -> bigint",
            "0002.two.rollback.sql: column one.b was added",
            "0002.two.sql: column one.a was changed: integer, not null -> bigint, not null",
        ]


def test_the_database_is_dropped_whatever_happens(server_url: str, tmp_path: Path) -> None:
    write(tmp_path, "0001.one", "SELECT 1 / 0;\n", "SELECT 1;\n")
    names: list[str] = []
    with pytest.raises(DatabaseError, match="division"):
        fail_on_a_scratch_database(server_url, tmp_path, names)
    assert not exists(server_url, *names)


def test_a_role_that_may_create_no_database_is_told(server_url: str, tmp_path: Path) -> None:
    host = urlsplit(server_url).netloc.rpartition("@")[2]
    nobody = urlunsplit(urlsplit(server_url)._replace(netloc=f"trial_nobody@{host}"))
    with connect(server_url) as conn:
        conn.execute("CREATE ROLE trial_nobody LOGIN")
        try:
            with pytest.raises(RefusedError, match="trial_nobody may not create") as refused:
                fail_on_a_scratch_database(nobody, tmp_path, [])
        finally:
            conn.execute("DROP ROLE trial_nobody")
    assert "CREATEDB" in (refused.value.hint or "")
