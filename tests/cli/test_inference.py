"""`arc-halo inference`: sessions listed and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

import arc_halo
from arc_halo.cli.main import arc_halo as program
from arc_halo.errors import NotFoundError, RefusedError


@pytest.fixture
def session(database: str, tmp_path: Path) -> str:
    """The id of a session that has answered."""
    with arc_halo.connect(database, project=tmp_path) as halo:
        halo.inference.session("poet@1.0.0", tenant="beta").finish("failed", "no\nmemory")
        with halo.inference.session("story@1.0.0", config={"top_k": 50, "by": "us"}) as opened:
            for latency in (10, 20, 30):
                opened.record(
                    latency_ms=latency, prompt_tokens=8, cached_tokens=4, generated_tokens=2
                )
            opened.record(latency_ms=1000, succeeded=False)
    return str(opened.id)


def run(database: str, *words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(program, [*words, "--database-url", database])
    assert result.exit_code == code, result.output
    return result


def facts(database: str, *words: str) -> Any:
    return json.loads(run(database, *words, "--output", "json").stdout)


def test_sessions_are_listed_the_newest_first(database: str, session: str) -> None:
    lines = run(database, "inference", "ls").stdout.splitlines()
    assert lines[0].split()[:4] == ["id", "model", "tenant", "status"]
    assert lines[1].split()[:7] == [session[:8], "story@1.0.0", "-", "completed", "4", "1", "6"]
    assert lines[2].split()[1:4] == ["poet@1.0.0", "beta", "failed"]
    found = facts(database, "inference", "ls", "--model", "story@1.0.0")["sessions"]
    assert [each["id"] for each in found] == [session]
    assert found[0]["config"] == {"top_k": 50, "by": "us"}
    assert len(run(database, "inference", "ls", "--limit", "1").stdout.splitlines()) == 2
    assert "| poet@1.0.0 | beta |" in run(
        database, "inference", "ls", "--status", "failed", "--output", "markdown"
    ).stdout  # fmt: skip
    assert "No inference session" in run(database, "inference", "ls", "--tenant", "x").stdout


def test_sessions_are_listed_by_an_alias_of_their_model(
    database: str, session: str, tmp_path: Path
) -> None:
    (tmp_path / "arc_halo.yaml").write_text(
        "version: 1\nproject: p\nmodels: {story@1.0.0: {aliases: [live]}}\n"
    )
    with arc_halo.Project(tmp_path, database_url=database, environ={}) as project:
        project.apply(project.plan())
    found = facts(database, "inference", "ls", "--model", "story:live")["sessions"]
    assert [each["id"] for each in found] == [session]
    run(database, "inference", "prune", "--older-than", "0", "--model", "story:live", "--yes")
    assert len(facts(database, "inference", "ls")["sessions"]) == 1
    result = CliRunner().invoke(
        program, ["inference", "ls", "--model", "story:dead", "--database-url", database]
    )
    assert isinstance(result.exception, NotFoundError)


def test_the_keys_of_the_json_are_in_the_reference(database: str, session: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"
    section = page.read_text().partition("## `arc-halo inference`")[2]
    listed = facts(database, "inference", "ls")["sessions"][0]
    shown = facts(database, "inference", "show", session)
    text = section.partition("## `arc-halo inference rm")[0]
    assert [key for key in (*listed, *shown) if f"`{key}`" not in text] == []


def test_a_session_is_shown_with_its_percentiles(database: str, session: str) -> None:
    text = run(database, "inference", "show", session[:8]).stdout
    shown = {line.split("  ")[0]: line.split()[-1] for line in text.splitlines() if line}
    assert shown["config.top_k"] == "50"
    assert shown["config.by"] == "us"
    assert shown["from the cache"] == "50.0%"
    assert "requests               4, 1 failed" in text
    assert text.splitlines()[-2].split() == ["latency", "20", "29", "29.8"]
    found = facts(database, "inference", "show", session)
    assert found["model"] == "story@1.0.0"
    assert found["latency"]["latency_p50_ms"] == 20
    assert found["latency"]["cached_share"] == 0.5
    assert found["requests_per_second"] > 0
    markdown = run(database, "inference", "show", session, "--output", "markdown").stdout
    assert "| latency | 20 | 29 | 29.8 |" in markdown


def test_an_unknown_session_is_an_error(database: str, session: str) -> None:
    result = run(database, "inference", "show", "abc", code=1)
    assert isinstance(result.exception, NotFoundError)


def test_a_session_is_deleted_after_a_look(database: str, session: str) -> None:
    would = run(database, "inference", "rm", session[:8], "--dry-run").stdout
    assert would.splitlines()[-1] == "1 session with 4 requests would go."
    refused = run(database, "inference", "rm", session, code=1).exception
    assert isinstance(refused, RefusedError)
    assert refused.hint is not None
    assert "--yes" in refused.hint
    assert len(facts(database, "inference", "ls")["sessions"]) == 2
    done = facts(database, "inference", "rm", session, session[:8], "--yes")
    assert ([each["id"] for each in done["sessions"]], done["is_done"]) == ([session], True)
    assert len(facts(database, "inference", "ls")["sessions"]) == 1


def test_old_sessions_are_pruned(database: str, session: str) -> None:
    assert run(database, "inference", "prune", "--older-than", "1d").stdout == "Nothing to prune.\n"
    refused = run(database, "inference", "prune", "--older-than", "0", code=1).exception
    assert isinstance(refused, RefusedError)
    would = run(database, "inference", "prune", "--older-than", "0", "--dry-run").stdout
    assert "2 sessions with 4 requests would go." in would
    gone = run(
        database, "inference", "prune", "--older-than", "0", "--tenant", "beta", "--yes",
        "--output", "markdown",
    ).stdout  # fmt: skip
    assert "| poet@1.0.0 | beta | failed | 0 |" in gone
    assert "1 session with 0 requests went." in gone
    found = facts(database, "inference", "prune", "--older-than", "0", "--yes")
    assert (found["requests"], found["trimmed"], found["is_done"]) == (4, 0, True)
    assert facts(database, "inference", "ls") == {"sessions": []}


def test_a_long_list_of_what_goes_is_cut(database: str, tmp_path: Path) -> None:
    with psycopg.connect(database) as conn:
        conn.execute(
            "INSERT INTO inference_sessions (model_name, model_version, status, finished_at)"
            " SELECT 'm', '1', 'completed', now() FROM generate_series(1, 60)"
        )
    text = run(database, "inference", "prune", "--older-than", "0", "--dry-run").stdout
    assert "… and 10 more" in text
    assert (
        len(facts(database, "inference", "prune", "--older-than", "0", "--dry-run")["sessions"])
        == 60
    )
