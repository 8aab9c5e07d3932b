from __future__ import annotations

import json
from pathlib import Path

import pytest

from arc_halo.cli.main import run
from arc_halo.store.connection import connect
from arc_halo.store.migration_files import write_sum


@pytest.fixture
def arc_halo(empty_database, monkeypatch, tmp_path, capsys):
    """Runs a command on an empty database; its exit code and what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", empty_database)

    def arc_halo(*arguments):
        code = run(list(arguments))
        return code, capsys.readouterr()

    return arc_halo


def test_a_dry_run_says_what_it_tried_and_leaves_nothing(arc_halo):
    code, shown = arc_halo("migrate", "up", "--dry-run")
    assert (code, shown.out.splitlines()[-1]) == (0, "6 migrations tried and undone.")
    assert "0 migrations applied" not in arc_halo("migrate", "up")[1].out


def test_the_tables_that_a_rollback_drops_are_named_with_their_rows(
    arc_halo, empty_database, monkeypatch
):
    arc_halo("migrate", "up")
    with connect(empty_database) as conn:
        conn.execute(
            "INSERT INTO cache_policies (name, budget_bytes)"
            " VALUES ('activation_cache', 1), ('attention_patterns', 1)"
        )
    code, shown = arc_halo("migrate", "down", "--to", "5", "--dry-run")
    lines = shown.out.splitlines()
    assert (code, lines[:2]) == (0, ["0006.inference", "  - cache_policies: 2 rows"])
    assert "  - kv_cache: 0 rows" in lines
    assert not any("kv_cache_g0:" in line for line in lines)  # a partition goes with its table
    assert lines[-1] == "1 migration tried and undone."
    facts = json.loads(
        arc_halo("migrate", "down", "--to", "5", "--dry-run", "--output", "json")[1].out
    )
    assert facts["tables"][0] == {"name": "cache_policies", "rows": 2, "is_exact": True}
    code, shown = arc_halo("migrate", "down", "--to", "5")
    assert (code, "cache_policies (2 rows), " in shown.err) == (5, True)
    monkeypatch.setattr("arc_halo.store.migration_losses.COUNTED_BYTES", 0)
    with connect(empty_database) as conn:
        conn.execute("ANALYZE cache_policies")
    assert "cache_policies (about 2 rows), " in arc_halo("migrate", "down", "--to", "5")[1].err
    assert "0 migrations rolled back." in arc_halo("migrate", "down", "--to", "6")[1].out


def test_drift_is_accepted_and_edits_are_repaired_with_a_reason(arc_halo, empty_database):
    arc_halo("migrate", "up")
    with connect(empty_database) as conn:
        conn.execute("ALTER TABLE models ADD theirs int")
        conn.execute(
            "UPDATE arc_halo_migrations SET sha256 = sha256('') WHERE migration_id ~ '^0004'"
        )
    assert arc_halo("migrate", "accept-drift")[0] == 64
    code, shown = arc_halo("migrate", "accept-drift", "--reason", "ours")
    assert (code, shown.out) == (0, "column models.theirs was added\n1 change accepted.\n")
    assert arc_halo("migrate", "accept-drift", "--reason", "ours")[0] == 1
    assert arc_halo("migrate", "up")[0] == 4
    code, shown = arc_halo("migrate", "repair", "4", "--reason", "a comment")
    assert (code, shown.out) == (0, "0004.reactors\n1 migration repaired.\n")
    assert arc_halo("migrate", "up")[0] == 0


def test_status_shows_what_was_interrupted(arc_halo, empty_database):
    arc_halo("migrate", "up", "--to", "1")
    with connect(empty_database) as conn:
        conn.execute(
            "INSERT INTO arc_halo_migrations_begun (migration_id, direction, sha256, host, pid,"
            " backend_start) VALUES ('0002.tensors', 'up', sha256(''), 'here', 1, now())"
        )
    states = json.loads(arc_halo("migrate", "status", "--output", "json")[1].out)["migrations"]
    assert [each["state"] for each in states[:3]] == ["applied", "interrupted", "pending"]
    assert "0002.tensors was interrupted" in arc_halo("doctor")[1].out


def test_a_directory_is_tried_and_its_sum_compared_and_written(arc_halo, tmp_path: Path):
    where = ("--directory", str(tmp_path))
    (tmp_path / "0001.one.sql").write_text("CREATE TABLE one (a int);\n")
    (tmp_path / "0001.one.rollback.sql").write_text("SELECT 1;\n")
    code, shown = arc_halo("migrate", "sum", *where)
    assert (code, "arc-halo migrate sum --write" in shown.err) == (4, True)
    assert arc_halo("migrate", "sum", "--write", *where)[0] == 0
    assert arc_halo("migrate", "sum", *where)[0] == 0
    code, shown = arc_halo("migrate", "test", *where, "--output", "json")
    assert code == 1
    assert json.loads(shown.out)["differences"][0]["object"] == "table one"
    (tmp_path / "0001.one.rollback.sql").write_text("DROP TABLE one;\n")
    write_sum(tmp_path)
    code, shown = arc_halo("migrate", "test", *where)
    assert (code, shown.out) == (0, "Up, down and up again: no difference.\n")
