from __future__ import annotations

import re
import threading
from pathlib import Path

import psycopg
import pytest

import arc_halo
from arc_halo import Project
from arc_halo.errors import ArcHaloError, ConnectionFailedError, InvalidInputError
from arc_halo.store import migrate
from arc_halo.store.connection import connect
from arc_halo.store.migration_files import migrations_directory

APPLIES = 20

SESSION_BOUND = re.compile(
    r"\b(UN)?LISTEN [a-z]|\bWITH HOLD\b|pg_(try_)?advisory_(un)?lock|set_config\([^()]*false\)"
    r"|\bCREATE (?:LOCAL )?TEMP(?![^;]*ON COMMIT DROP)|\bPREPARE \w+ AS\b"
    r"|[\"'] *SET (?!LOCAL|TRANSACTION|CONSTRAINTS)\w"
    r"|^SET (?!LOCAL)\w+ TO\b|\bSET SESSION\b|\bDISCARD ALL\b",
    re.MULTILINE,
)

MANIFEST = """
version: 1
project: race
strategies:
  even: {uses: linear}
  calm: {uses: ties, params: {density: 0.5}}
"""


def test_what_is_set_in_one_session_leaks_into_the_next(database: str) -> None:
    """What the other tests here rely on: this pooler is as treacherous as they are."""
    with psycopg.connect(database, autocommit=True) as one:
        one.execute("SET search_path = pg_catalog")
        with psycopg.connect(database, autocommit=True) as other:
            assert other.execute("SHOW search_path").fetchone() == ("pg_catalog",)


def test_startup_options_are_refused_and_the_hint_says_by_whom(database: str) -> None:
    with pytest.raises(ConnectionFailedError, match="unsupported startup parameter") as caught:
        connect(f"{database}&options=-csearch_path%3Dx")
    assert "a pooler stands before the server" in str(caught.value.hint)


def test_no_sql_of_the_program_outlives_its_transaction() -> None:
    texts = [*Path(arc_halo.__file__).parent.rglob("*.py"), *migrations_directory().glob("*.sql")]
    for path in texts:
        assert not SESSION_BOUND.findall(path.read_text()), path


def test_migrations_run_through_the_pooler_too(database: str) -> None:
    with connect(database) as conn:
        assert migrate.down(conn, to="0")
        assert len(migrate.up(conn)) == len(migrate.status(conn))


@pytest.mark.parametrize("way", ["direct_database", "database"])
def test_of_twenty_applies_of_one_plan_one_succeeds_and_the_others_are_told(
    request: pytest.FixtureRequest, tmp_path: Path, way: str
) -> None:
    url = request.getfixturevalue(way)
    (tmp_path / "arc_halo.yaml").write_text(MANIFEST)
    outcomes: list[int] = []
    begin = threading.Barrier(APPLIES)

    def opened() -> Project:
        return Project(tmp_path, database_url=url, environ={})

    def apply() -> None:
        with opened() as project:
            begin.wait()
            try:
                project.apply(plan)
            except ArcHaloError as exc:
                outcomes.append(exc.exit_code)
            else:
                outcomes.append(0)

    with opened() as project:
        plan = project.plan()
    threads = [threading.Thread(target=apply) for _ in range(APPLIES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [0] + [3] * (APPLIES - 1)
    with opened() as project, project.connection() as conn:
        assert conn.execute("SELECT revision FROM revisions").fetchall() == [(1,)]
        assert not project.plan().changes


def test_migrations_go_round_the_pooler_where_a_direct_address_is_given(
    database: str, direct_database: str, empty_database: str, tmp_path: Path
) -> None:
    (tmp_path / "arc_halo.yaml").write_text(MANIFEST)

    def opened(direct: str, flag: str | None = None) -> Project:
        addresses = {"ARC_HALO_DATABASE_URL": database, "ARC_HALO_DIRECT_DATABASE_URL": direct}
        return Project(tmp_path, database_url=flag, environ=addresses)

    with opened(direct_database) as project, project.direct_connection() as conn:
        assert "port=6432" not in conn.info.dsn
        assert project.migrate() == []
    with (
        opened(empty_database) as project,
        pytest.raises(InvalidInputError, match="leads to another database") as caught,
    ):
        project.migrate()
    assert caught.value.error_code == "AH090"
    with opened(empty_database, flag=database) as project, project.direct_connection() as conn:
        assert "port=6432" in conn.info.dsn
