"""Watching: the database is kept as the manifest says, and every tick is told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from arc_halo import Project
from arc_halo.cli.main import run
from arc_halo.watching import Watch, Watched

HEAD = "version: 1\nproject: shop\n"
ONE = HEAD + "models: {a@1: {type: other, description: one}}\n"
TWO = ONE + "strategies: {even: {uses: linear}}\n"


@pytest.fixture
def shop(tmp_path: Path, database: str):
    """Writes a manifest, lets one tick pass, and gives its event."""
    events: list[dict[str, Any]] = []

    def tick(manifest: str | None = None, **options: Any) -> dict[str, Any]:
        if manifest is not None:
            (tmp_path / "arc_halo.yaml").write_text(manifest)

        def open_project() -> Project:
            return Project(tmp_path, database_url=database, environ={})

        assert Watch(open_project, events.append, Watched(**options)).tick() == events[-1]["event"]
        return events[-1]

    return tick


def test_what_is_declared_is_applied_and_then_left(shop) -> None:
    event = shop(ONE)
    assert (event["event"], event["revision"], event["changes"]) == ("applied", 1, {"create": 1})
    assert shop()["event"] == "unchanged"


def test_drift_is_put_right(shop, database: str) -> None:
    shop(ONE)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("UPDATE models SET description = 'by hand'")
        event = shop()
        assert (event["event"], event["drifted"]) == ("applied", 1)
        assert conn.execute("SELECT description FROM models").fetchone() == ("one",)


def test_nothing_is_deleted_unless_it_may_be(shop) -> None:
    shop(TWO)
    event = shop(ONE, prune=True)
    assert (event["event"], event["code"]) == ("blocked", "AH054")
    assert event["resource_changes"] == [{"address": "strategy/even", "action": "delete"}]
    assert shop(prune=True, may_delete=True)["changes"] == {"delete": 1}
    assert shop(HEAD, prune=True, may_delete=True)["event"] == "blocked"


def test_a_manifest_that_was_rolled_back_waits_for_another(shop, tmp_path, database) -> None:
    shop(ONE)
    shop(TWO)
    with Project(tmp_path, database_url=database, environ={}) as project:
        project.apply(project.plan_rollback(1))
    assert (shop()["event"], shop()["revision"]) == ("held", 3)
    assert shop(TWO + "# another\n")["event"] == "applied"


def test_errors_are_told_and_outlived(shop) -> None:
    event = shop(HEAD + "modls: {}\n")
    assert (event["event"], event["code"]) == ("failed", "AH003")
    assert shop(ONE)["event"] == "applied"


def test_who_only_watches_changes_nothing(shop, database: str) -> None:
    event = shop(ONE, applies=False)
    assert (event["event"], event["changes"]) == ("blocked", {"create": 1})
    assert event["resource_changes"] == [{"address": "model/a@1", "action": "create"}]
    with psycopg.connect(database) as conn:
        assert conn.execute("SELECT count(*) FROM models").fetchone() == (0,)


def test_of_many_changes_the_first_are_named_and_all_are_counted(shop) -> None:
    event = shop(HEAD + f"models: {{{', '.join(f'm{n}@1: {{type: other}}' for n in range(30))}}}\n")
    assert event["changes"] == {"create": 30}
    assert len(event["resource_changes"]) == 20


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "1e10", "86401", "0.5", "soon"])
def test_an_interval_is_of_a_second_to_a_day(seconds: str, capsys) -> None:
    assert run(["watch", "--interval", seconds]) == 64
    assert "Invalid value for '--interval'" in capsys.readouterr().err


def test_sigterm_ends_a_watch_cleanly(tmp_path: Path, database: str) -> None:
    (tmp_path / "arc_halo.yaml").write_text(ONE)
    process = subprocess.Popen(
        [sys.executable, "-m", "arc_halo", "watch", "--interval", "30", "--database-url", database],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = [json.loads(process.stdout.readline())["event"] for _ in range(2)]
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=30)
    assert first == ["started", "applied"]
    assert [json.loads(line)["event"] for line in rest.splitlines()] == ["stopped"]
    assert process.returncode == 0
