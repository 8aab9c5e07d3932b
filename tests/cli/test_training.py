"""`arc-halo training …` on recorded sessions: what it prints, its forms, its exit codes."""

from __future__ import annotations

import json
import math
import re
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from arc_halo.cli.main import run
from arc_halo.store.connection import connect

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from recorded import BEGAN, add_points, add_session


@pytest.fixture
def sessions(database, tmp_path, monkeypatch):
    """A finished session, `night-2`, and a fork of it that runs, `night-3`; their ids."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    with connect(database) as conn:
        first = add_session(
            conn,
            "night-2",
            status="completed",
            started_at=BEGAN,
            finished_at=BEGAN + timedelta(hours=1),
            heartbeat_at=BEGAN + timedelta(hours=1),
            config={"lr": 0.1, "optimizer": {"name": "adamw"}},
            tags={"seed": 1},
        )
        add_points(conn, first, {i: 10.0 - i for i in range(8)} | {5: math.nan})
        add_points(conn, first, {i: i / 8 for i in range(0, 8, 2)}, "accuracy", "eval")
        second = add_session(
            conn,
            "night-3",
            started_at=BEGAN + timedelta(hours=2),
            parent_id=first,
            forked_at_step=4,
            current_step=6,
            total_steps=60,
            config={"lr": 0.2, "optimizer": {"name": "adamw"}, "warmup": 10},
        )
        add_points(conn, second, {5: 1.0, 6: 0.5})
    return first, second


@pytest.fixture
def training(sessions, capsys):
    """Runs `arc-halo training …`; its exit code and what it said."""

    def call(*arguments):
        capsys.readouterr()
        code = run(["training", *map(str, arguments), "--quiet"])
        said = capsys.readouterr()
        return code, said.out if code == 0 else said.err

    return call


def found_json(training, *arguments):
    code, text = training(*arguments, "--output", "json")
    assert code == 0, text
    return json.loads(text)


def test_sessions_are_listed_the_newest_first(training, sessions):
    code, text = training("ls")
    assert code == 0
    header, *rows = text.splitlines()
    assert " ".join(header.split()) == "id name model status step done loss began took"
    assert [row.split()[:4] for row in rows] == [
        [str(sessions[1])[:8], "night-3", "story@1.0.0", "running"],
        [str(sessions[0])[:8], "night-2", "story@1.0.0", "completed"],
    ]
    assert rows[0].split()[4:7] == ["6", "10%", "0.5"]
    assert rows[1].endswith("60 min 00 s")
    assert len(training("ls", "--limit", 1)[1].splitlines()) == 2


def test_filters_of_the_list_choose(training):
    def names(*arguments):
        return [each["name"] for each in found_json(training, "ls", *arguments)["sessions"]]

    assert names("--status", "completed") == ["night-2"]
    assert names("--tag", "seed=1") == ["night-2"]
    assert names("--model", "story@1.0.0", "--name", "*-3") == ["night-3"]
    assert names("--group", "none") == []
    assert training("ls", "--model", "other") == (
        0,
        "No training session is recorded that fits.\n",
    )


def test_a_session_is_shown_with_its_config_and_its_series(training, sessions):
    code, text = training("show", "night-3")
    assert code == 0
    fields = dict(
        re.split("  +", line, maxsplit=1) for line in text.partition("\n\n")[0].splitlines()
    )
    assert fields["step"] == "6 of 60"
    assert fields["config.optimizer.name"] == "adamw"
    assert fields["forked from"] == "night-2 at step 4"
    assert [line.split() for line in text.partition("\n\n")[2].splitlines()[1:]] == [
        ["eval/accuracy", "3", "4", "0.5", "0", "0", "0.5", "4", "0.25"],
        ["train/loss", "7", "6", "0.5", "0.5", "6", "10", "0", "5.92857"],
    ]
    assert "forks" in training("show", str(sessions[0])[:6])[1]


def test_values_that_are_no_numbers_are_texts_in_json(training, sessions):
    facts = found_json(training, "show", sessions[0], "--metric", "l*", "--scope", "train")
    (loss,) = facts["series"]
    assert (loss["count"], loss["not_finite"], loss["high_step"]) == (8, 1, 0)
    assert facts["config"] == {"lr": 0.1, "optimizer": {"name": "adamw"}}
    assert [each["name"] for each in facts["forks"]] == ["night-3"]


def test_markdown_has_the_same_tables(training):
    code, text = training("show", "night-2", "--output", "markdown")
    assert code == 0
    assert "| config.lr | 0.1 |" in text
    assert "| train/loss | 8 | 7 | 3 | 3 | 7 | 10 | 0 |" in text


def test_a_session_that_is_not_there_says_what_is_close(training):
    code, text = training("show", "nihgt-3")
    assert code == 1
    assert "did you mean 'night-3'?" in text


def test_sessions_are_compared_by_what_differs(training):
    code, text = training("compare", "night-2", "night-3", "--value", "least")
    assert code == 0
    _, config, metrics = text.split("\n\n")
    assert [line.split() for line in config.splitlines()] == [
        ["config", "night-2", "night-3"],
        ["lr", "0.1", "0.2"],
        ["warmup", "-", "10"],
    ]
    assert [line.split() for line in metrics.splitlines()] == [
        ["least", "night-2", "night-3"],
        ["eval/accuracy", "0", "0"],
        ["train/loss", "3", "0.5"],
    ]
    assert "optimizer.name" in training("compare", "night-2", "night-3", "--all")[1]


def test_a_comparison_in_json_has_all_of_it(training, sessions):
    facts = found_json(training, "compare", *sessions, "--metric", "loss")
    first, second = map(str, sessions)
    assert [each["key"] for each in facts["config"] if each["is_same"]] == ["optimizer.name"]
    assert facts["config"][0]["values"] == {first: 0.1, second: 0.2}
    assert facts["metrics"][0]["sessions"][second]["low_step"] == 6
    code, text = training("compare", *sessions, "--output", "markdown")
    assert code == 0
    assert "| lr | 0.1 | 0.2 |" in text
