from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from arc_halo import embedded
from arc_halo.cli.doctor import doctor, examine_database
from arc_halo.cli.invocation import Invocation
from arc_halo.store import migrate
from arc_halo.store.connection import connect

SECRET = "pl4nted-s3cret"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Neither in a project nor with a database in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARC_HALO_DATABASE_URL", raising=False)
    monkeypatch.delenv("NEON_DATABASE_URL", raising=False)


def run(invocation):
    return CliRunner().invoke(doctor, [], obj=invocation, catch_exceptions=False)


def findings(url):
    with connect(url) as conn:
        return {finding.check: finding for finding in examine_database(conn)}


def test_a_migrated_database_is_well(database):
    found = findings(database)
    assert {name for name in found if found[name].state == "fail"} == set()
    for name in (
        "server",
        "encoding",
        "writes",
        "migrations",
        "tables",
        "schema",
        "rights",
        "round trip",
    ):
        assert found[name].state == "ok", found[name]


def test_the_round_trip_leaves_nothing_behind(database):
    findings(database)
    with connect(database) as conn:
        assert conn.execute("SELECT count(*) FROM tensor_data").fetchone() == (0,)


def test_an_empty_database_is_told_to_migrate(empty_database):
    found = findings(empty_database)
    assert {name for name in found if found[name].state == "fail"} == set()
    for name in ("migrations", "tables", "round trip"):
        assert found[name].state == "warn"
        assert "arc-halo migrate up" in found[name].advice


def test_a_table_of_somebody_else_is_named_and_nobody_is_sent_to_migrate(empty_database):
    with connect(empty_database) as conn:
        conn.execute("CREATE TABLE models (a int)")
    found = findings(empty_database)
    assert found["migrations"].state == "fail"
    assert "'models' that Arc-Halo did not make" in found["migrations"].message
    assert {name for name in found if "migrate up" in (found[name].advice or "")} == set()
    assert found["tables"].message == "none yet"


def test_a_part_of_the_migrations_is_not_called_no_schema(empty_database):
    with connect(empty_database) as conn:
        migrate.up(conn, to="5")
    found = findings(empty_database)
    assert found["round trip"].message == "not tried: migrations are pending"
    assert found["migrations"].message == "1 of 6 pending"


def test_a_missing_table_is_named(database):
    with connect(database) as conn:
        conn.execute("DROP TABLE attention_patterns CASCADE")
    found = findings(database)["tables"]
    assert (found.state, "attention_patterns" in found.message) == ("fail", True)


def test_a_column_that_somebody_added_is_named(database):
    with connect(database) as conn:
        conn.execute("ALTER TABLE models ADD theirs int")
    found = findings(database)["schema"]
    assert (found.state, found.message) == ("warn", "column models.theirs was added")


def test_a_migration_that_was_changed_is_a_failure(database):
    with connect(database) as conn:
        last = migrate.status(conn)[-1].id
        conn.execute("UPDATE arc_halo_migrations SET sha256 = sha256('')")
    found = findings(database)["migrations"]
    assert (found.state, last in found.message) == ("fail", True)
    assert found.advice


def test_a_role_without_rights_is_told_which_it_lacks(database):
    with connect(database) as conn, conn.transaction(force_rollback=True):
        conn.execute("CREATE ROLE doctor_reader; GRANT SELECT ON models TO doctor_reader")
        conn.execute("SET LOCAL ROLE doctor_reader")
        found = {finding.check: finding for finding in examine_database(conn)}["rights"]
    assert found.state == "fail"
    everything, of_models = found.message.split("; ")
    assert of_models == "INSERT, UPDATE, DELETE on models"
    assert "SELECT, INSERT, UPDATE, DELETE on activation_cache, attention_heads, " in everything


def test_a_read_only_role_is_a_failure(database):
    with connect(database) as conn, conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL default_transaction_read_only = on")
        found = {finding.check: finding for finding in examine_database(conn)}["writes"]
    assert found.state == "fail"
    assert "RESET default_transaction_read_only" in found.advice


def test_an_embedded_database_is_examined_and_its_server_stops(tmp_path):
    (tmp_path / "arc_halo.yaml").write_text("version: 1\nproject: demo\n")
    result = run(Invocation(project=tmp_path, output="json"))
    found = {item["check"]: item for item in json.loads(result.stdout)["findings"]}
    assert result.exit_code == 0
    assert found["connection"]["state"] == "ok"
    assert found["durability"]["state"] == "ok"
    assert found["tls"]["state"] == "ok"
    assert found["vector"]["message"].startswith("pgvector")
    assert not embedded.status(tmp_path).running


def test_a_database_that_cannot_be_reached_exits_1_and_shows_no_password():
    url = f"postgresql://u:{SECRET}@127.0.0.1:1/x?sslmode=nonsense"
    result = run(Invocation(database_url=url))
    assert result.exit_code == 1
    assert "fail" in result.stdout
    assert "->" in result.stdout
    assert SECRET not in result.output


def test_an_address_that_cannot_be_read_is_a_finding():
    result = run(Invocation(database_url=f"postgresql://u:{SECRET}%zz@db/x"))
    assert result.exit_code == 1
    assert SECRET not in result.output


def test_the_report_is_also_markdown(database):
    said = run(Invocation(database_url=database, output="markdown")).stdout
    assert said.startswith("| state | check | finding | what to do |")
    assert "| ok | round trip |" in said


def test_the_help_has_examples():
    assert "arc-halo --output json doctor" in CliRunner().invoke(doctor, ["--help"]).stdout
