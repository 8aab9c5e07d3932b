"""`arc-halo training …` on recorded sessions: what it prints, its forms, its exit codes."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from arc_halo.cli.main import run
from arc_halo.store import gradient_checkpoints
from arc_halo.store.connection import connect
from arc_halo.store.gradient_checkpoints import GradientCheckpoint
from arc_halo.training.plotting import OUTSIDE
from arc_halo.training.points import Batch
from arc_halo.training.spool import Spool

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


def test_layers_that_are_computed_again_are_told(training, sessions, database):
    rows = [
        GradientCheckpoint(
            layer_index=index,
            module_name=f"h.{index}",
            is_checkpointed=saved > 0,
            activation_bytes=3000,
            saved_bytes=saved,
        )
        for index, saved in enumerate((2000, 0))
    ]
    with connect(database) as conn:
        gradient_checkpoints.replace(conn, sessions[1], rows)
    text = training("show", "night-3")[1]
    assert re.search(
        r"^computed again +1 of 2 layers: about 6.0 kB of activations at the peak, "
        r"4.0 kB after the forward pass, 6.0 kB without$",
        text,
        re.MULTILINE,
    )
    assert "computed again" not in training("show", "night-2")[1]
    facts = found_json(training, "show", "night-3")
    assert [each["saved_bytes"] for each in facts["gradient_checkpoints"]] == [2000, 0]


def test_layers_of_which_nothing_is_estimated_are_counted(training, sessions, database):
    row = GradientCheckpoint(
        layer_index=0,
        module_name="h.0",
        is_checkpointed=True,
        activation_bytes=None,
        saved_bytes=None,
    )
    with connect(database) as conn:
        gradient_checkpoints.replace(conn, sessions[1], [row])
    text = training("show", "night-3")[1]
    assert re.search(r"^computed again +1 of 1 layer$", text, re.MULTILINE)


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


def test_a_plot_has_its_title_its_frame_and_its_marks(training):
    code, text = training("plot", "night-2", "--width", 60, "--height", 8)
    assert code == 0
    lines = text.splitlines()
    assert lines[0] == "night-2 train/loss"
    assert [line.split()[0] for line in (lines[1], lines[8])] == ["10", "3"]
    assert lines[-2].split() == ["0", "7"]
    assert lines[-1] == f"{OUTSIDE}  NaN or infinite"


def test_a_plot_of_several_sessions_names_them(training):
    code, text = training("plot", "night-2", "night-3", "--scope", "*", "--metric", "*")
    assert code == 0
    assert text.splitlines()[-5:-1] == [
        "a  night-2 eval/accuracy",
        "b  night-2 train/loss",
        "c  night-3 eval/accuracy",
        "d  night-3 train/loss",
    ]


def test_a_plot_in_json_is_what_it_would_draw(training, sessions):
    facts = found_json(training, "plot", sessions[1], "--first", 4, "--last", 6, "--over", "time")
    (curve,) = facts["curves"]
    assert curve["x"] == [0, 1, 2]
    assert curve["high"] == [6, 1, 0.5]
    assert training("plot", "night-3", "--output", "markdown")[1].startswith("```text\n")


def test_a_plot_that_has_no_room_is_refused(training, sessions, database):
    with connect(database) as conn:
        for n in range(26):
            add_points(conn, sessions[0], {0: 1.0}, f"more-{n}")
    code, text = training("plot", "night-2", "--metric", "*")
    assert code == 4
    assert "no room in one plot" in text
    for size in (("--width", "1000000"), ("--height", "1000000")):
        assert training("plot", "night-2", *size)[0] == 64


def test_a_plot_goes_to_a_file_once(training, tmp_path):
    file = tmp_path / "loss.svg"
    assert training("plot", "night-2", "night-3", "--file", file)[0] == 0
    drawn = file.read_bytes()
    assert drawn.startswith(b"<?xml")
    code, text = training("plot", "night-2", "--file", file)
    assert code == 5
    assert "--force" in text
    assert training("plot", "night-2", "--file", file, "--force")[0] == 0
    assert file.read_bytes() != drawn


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plot", "night-2", "--metric", "lose"], 1, "no point of 'lose' of train in 'night-2'"),
        (["plot", "night-2", "--first", "100"], 1, "no point of 'loss' of train in 'night-2'"),
        (["plot", "night-2", "--file", "loss.gif"], 4, "write loss.png"),
        (["plot", "night-2", "--file", "nowhere/loss.png"], 1, "AH015"),
        (["export", "night-9"], 1, "did you mean"),
        (["export", "night-2", "-o", "nowhere/points.csv"], 1, "AH015"),
        (["export", "night-2", "--output", "json"], 64, "--out FILE"),
    ],
)
def test_what_cannot_be_drawn_or_exported_says_why(training, arguments, code, said):
    found, text = training(*arguments)
    assert found == code
    assert said in text


def test_points_are_exported_to_standard_output_and_to_files(training, sessions, tmp_path):
    code, text = training("export", "night-3", "--metric", "loss")
    assert code == 0
    rows = list(csv.DictReader(text.splitlines()))
    assert [(row["step"], row["value"]) for row in rows[-3:]] == [
        ("4", "6.0"),
        ("5", "1.0"),
        ("6", "0.5"),
    ]
    code, said = training("export", "night-3", "--metric", "loss", "-o", tmp_path / "points.csv")
    assert (code, said) == (0, f"Exported 7 points to {tmp_path / 'points.csv'}\n")
    assert (tmp_path / "points.csv").read_text() == text
    facts = found_json(training, "export", *sessions, "-o", tmp_path / "points.parquet")
    assert facts["points"] == 8 + 4 + 7 + 3
    assert (tmp_path / "points.parquet").read_bytes().startswith(b"PAR1")
    assert training("export", "night-3", "-o", tmp_path / "points.csv")[0] == 5


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("matplotlib", ["plot", "night-2", "--file", "loss.png"]),
        ("pyarrow", ["export", "night-2", "-o", "points.parquet"]),
    ],
)
def test_an_extra_that_is_missing_is_named(training, monkeypatch, package, arguments):
    monkeypatch.setitem(sys.modules, package, None)
    code, text = training(*arguments)
    assert code == 1
    assert f"{package} is not installed" in text
    assert "pip install 'arc-halo[" in text


def test_names_are_drawn_as_they_are_written(training, database, tmp_path):
    with connect(database) as conn:
        session = add_session(conn, "_$x_1$ \N{HIRAGANA LETTER A}\x1b[2J\n")
        add_points(conn, session, {1: 1.0, 2: 2.0}, "a$b")
    arguments = ["plot", session, "--metric", "a*"]
    assert training(*arguments)[1].startswith(
        "_$x_1$ \N{HIRAGANA LETTER A}\\x1b[2J\\x0a train/a$b\n"
    )
    assert training(*arguments, "--file", tmp_path / "odd.svg")[0] == 0
    assert training("ls")[1].count("\n") == 4


def test_a_fork_of_a_session_that_is_gone_has_its_own_points_and_says_so(
    training, database, sessions
):
    with connect(database) as conn:
        conn.execute("DELETE FROM training_sessions WHERE id = %s", [sessions[0]])
    code, text = training("show", "night-3")
    assert code == 0
    assert "a session that is gone, at step 4" in text
    assert [line.split()[:2] for line in text.splitlines() if "/" in line] == [["train/loss", "2"]]


def test_what_waits_on_the_disk_is_written(training, sessions, database, tmp_path):
    assert training("sync")[:2] == (0, "Nothing waits on the local disk.\n")
    waiting = Spool(tmp_path / ".arc-halo" / "training" / str(sessions[0]), limit_bytes=10**6)
    waiting.put(Batch.of([("loss", "train", step, math.nan, 0.5, 1.7e9) for step in (100, 101)]))
    code, said = training("sync", "--output", "json")[:2]
    assert (code, json.loads(said)["sessions"]) == (0, [{"id": str(sessions[0]), "points": 2}])
    assert not waiting.directory.exists()
    with connect(database) as conn:
        row = conn.execute("SELECT max(step) FROM training_metrics").fetchone()
    assert row == (101,)


@pytest.mark.parametrize("metric", ["eval/accuracy", "eval/*", "*/accuracy"])
def test_a_metric_may_say_its_scope(training, metric):
    drawn = found_json(training, "plot", "night-2", "--metric", metric)
    assert [(each["scope"], each["key"]) for each in drawn["curves"]] == [("eval", "accuracy")]
    shown = found_json(training, "show", "night-2", "--metric", metric)
    assert [(each["scope"], each["key"]) for each in shown["series"]] == [("eval", "accuracy")]
    compared = found_json(training, "compare", "night-2", "night-3", "--metric", metric)
    assert [each["scope"] for each in compared["metrics"]] == ["eval"]
    code, text = training("export", "night-2", "--metric", metric)
    assert (code, len(text.splitlines())) == (0, 5)


@pytest.mark.parametrize("command", ["plot", "show", "compare", "export"])
def test_a_scope_that_the_metric_contradicts_is_refused(training, command):
    code, text = training(command, "night-2", "--metric", "eval/accuracy", "--scope", "train")
    assert code != 0
    assert "says another scope than 'train'" in text


def test_a_plot_of_nothing_says_in_which_scopes_the_metric_is(training):
    code, text = training("plot", "night-2", "--metric", "accuracy")
    assert code == 1
    assert "no point of 'accuracy' of train" in text
    assert "there is one of eval" in text


def test_what_no_metric_fits_is_told(sessions, capsys):
    assert run(["training", "show", "night-2", "--metric", "zz"]) == 0
    assert "no series of the session fits" in capsys.readouterr().err
    assert run(["training", "export", "night-2", "--metric", "zz"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1
    assert "no point fits" in shown.err
