"""Schema drift: what somebody changed by hand is named, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arc_halo.errors import SchemaMismatchError
from arc_halo.store import migrate
from arc_halo.store.connection import Connection, connect
from arc_halo.store.migration_files import write_sum
from arc_halo.store.schema_drift import schema_drift

CHANGES = {
    "ALTER TABLE models ADD extra_column int": ["column models.extra_column added"],
    "ALTER TABLE reactor_metrics DROP COLUMN operation_id": [
        "column reactor_metrics.operation_id removed",
        "constraint reactor_metrics_operation_id_fkey of reactor_metrics removed",
        "index reactor_metrics_operation_id_idx removed",
    ],
    "ALTER TABLE models ALTER description SET NOT NULL": ["column models.description changed"],
    "ALTER TABLE managed_resources ALTER protected SET DEFAULT true": [
        "column managed_resources.protected changed"
    ],
    "ALTER TABLE projects DROP CONSTRAINT projects_head_revision_check": [
        "constraint projects_head_revision_check of projects removed"
    ],
    "CREATE INDEX theirs ON models (description)": ["index theirs added"],
    "ALTER TABLE projects DISABLE TRIGGER projects_touch": [
        "trigger projects_touch of projects changed"
    ],
    "ALTER TABLE models ENABLE ROW LEVEL SECURITY": ["table models changed"],
    "CREATE POLICY hide ON models USING (false)": ["policy hide of models added"],
    "CREATE RULE lose AS ON DELETE TO projects DO INSTEAD NOTHING": ["rule lose of projects added"],
    "DROP TABLE cognitive_state": ["table cognitive_state removed"],
    "DROP FUNCTION attention_row": ["function attention_row(uuid,integer,integer,integer) removed"],
    "ALTER VIEW v_training_progress SET (security_barrier)": ["view v_training_progress changed"],
    "COMMENT ON TABLE models IS 'hello'": ["table models changed"],
    "CREATE TABLE theirs (a int REFERENCES embeddings)": [],
    "CREATE FUNCTION get_latest_checkpoint(text) RETURNS text RETURN $1": [],
}


def test_a_schema_as_migrated_has_not_drifted(conn: Connection) -> None:
    assert schema_drift(conn) == ()


@pytest.mark.parametrize("statement", CHANGES)
def test_a_change_by_hand_is_named_and_what_is_somebodys_own_is_not(
    conn: Connection, statement: str
) -> None:
    conn.execute(statement.encode())
    found = [f"{change.object} {change.change}" for change in schema_drift(conn)]
    assert found == CHANGES[statement]


def test_a_change_says_what_was_and_what_is(conn: Connection) -> None:
    conn.execute("ALTER TABLE models ALTER description TYPE varchar(9)")
    (change,) = schema_drift(conn)
    assert (change.before, change.after) == ("text", "character varying(9)")
    expected = "column models.description was changed: text -> character varying(9)"
    assert str(change) == expected


def test_a_reader_sees_it_in_a_read_only_transaction(conn: Connection) -> None:
    conn.execute("CREATE ROLE drift_reader; GRANT SELECT ON arc_halo_schema TO drift_reader")
    conn.execute("ALTER TABLE models ADD extra_column int")
    conn.execute("SET LOCAL ROLE drift_reader; SET TRANSACTION READ ONLY")
    assert [str(change) for change in schema_drift(conn)] == [
        "column models.extra_column was added"
    ]


def test_a_schema_of_the_role_s_own_does_not_matter(conn: Connection) -> None:
    conn.execute("CREATE SCHEMA theirs; SET LOCAL search_path = theirs, public")
    assert schema_drift(conn) == ()


@pytest.fixture
def empty(empty_database: str) -> Iterator[Connection]:
    with connect(empty_database) as conn:
        yield conn


@pytest.fixture
def two(tmp_path: Path) -> Path:
    for name, text in (
        ("0001.one", "CREATE TABLE one (a int)"),
        ("0002.two", "ALTER TABLE one ADD b int"),
    ):
        (tmp_path / f"{name}.sql").write_text(f"{text};\n")
    (tmp_path / "0001.one.rollback.sql").write_text("DROP TABLE one;\n")
    (tmp_path / "0002.two.rollback.sql").write_text("ALTER TABLE one DROP b;\n")
    write_sum(tmp_path)
    return tmp_path


def test_a_migration_records_its_own_changes_and_leaves_drift_told(
    empty: Connection, two: Path
) -> None:
    migrate.up(empty, directory=two, to="1")
    empty.execute("ALTER TABLE one ADD theirs int")
    for step in (migrate.up, migrate.down):
        step(empty, directory=two, to="2" if step is migrate.up else "1")
        assert [change.object for change in schema_drift(empty)] == ["column one.theirs"]
    migrate.down(empty, directory=two, to="0")
    assert schema_drift(empty) == ()


def test_what_an_older_server_worded_is_recorded_anew_and_is_no_drift(
    empty: Connection, two: Path
) -> None:
    migrate.up(empty, directory=two)
    empty.execute("CREATE TABLE theirs (a int)")
    empty.execute("UPDATE arc_halo_schema SET server_major = 14, definition = 'worded otherwise'")
    with pytest.raises(SchemaMismatchError, match="upgraded from PostgreSQL 14 to") as refused:
        schema_drift(empty)
    assert "arc-halo migrate up" in (refused.value.hint or "")
    assert migrate.up(empty, directory=two) == []
    assert schema_drift(empty) == ()
    empty.execute("ALTER TABLE theirs ADD b int")
    assert schema_drift(empty) == ()


def test_a_database_without_a_record_gets_one_by_the_next_up(empty: Connection, two: Path) -> None:
    with pytest.raises(SchemaMismatchError, match="no migration has recorded"):
        schema_drift(empty)
    migrate.up(empty, directory=two, to="1")
    empty.execute("DROP TABLE arc_halo_schema")
    migrate.up(empty, directory=two)
    empty.execute("ALTER TABLE one DROP a")
    assert [change.object for change in schema_drift(empty)] == ["column one.a"]
