"""`arc-halo training checkpoints` and `prune`: looked at, compared, taken, pinned, let go."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import arc_halo
from arc_halo.cli.main import run


@pytest.fixture
def halo(tmp_path, database, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    with arc_halo.connect(database, project=tmp_path) as opened:
        yield opened


@pytest.fixture
def trained(halo):
    """Five checkpoints of one session; their weights by step."""
    weights = {}
    with halo.training.session("story@1", name="tune", best_metric="loss") as session:
        for step, loss in zip(range(10, 60, 10), (5, 1, 2, float("nan"), 4), strict=True):
            w = np.zeros(100_000, np.float32)
            w[:3] = step
            weights[step] = {"w": w, "fixed": np.ones(5000, np.float32)}
            session.checkpoint(
                step=step,
                epoch=step / 10,
                model=weights[step],
                optimizer={"m": w * 2, "lr": 1 / step},
                metrics={"loss": loss},
            )
    return weights


def told(capsys, *arguments):
    capsys.readouterr()
    code = run(["training", *arguments, "--output", "json"])
    return code, json.loads(capsys.readouterr().out)


def steps(capsys):
    return [each["step"] for each in told(capsys, "checkpoints", "ls", "tune")[1]["checkpoints"]]


def test_checkpoints_are_listed_with_why_they_stay(trained, capsys):
    code, facts = told(capsys, "checkpoints", "ls", "tune")
    assert code == 0
    assert [(each["step"], each["kept_because"]) for each in facts["checkpoints"]] == [
        (10, None),
        (20, "best"),
        (30, None),
        (40, None),
        (50, "latest"),
    ]
    assert facts["checkpoints"][3]["metrics"] == {"loss": "NaN"}
    assert run(["training", "checkpoints", "ls", "tune"]) == 0
    shown = capsys.readouterr().out
    assert "loss nan" in shown
    assert facts["checkpoints"][0]["id"][:8] in shown
    assert run(["training", "checkpoints", "ls", "tune", "--output", "markdown"]) == 0
    assert "| 20 | full |" in capsys.readouterr().out


def test_a_session_without_checkpoints_says_so_and_one_that_is_not_there_too(halo, capsys):
    with halo.training.session("story@1", name="bare"):
        pass
    assert run(["training", "checkpoints", "ls", "bare"]) == 0
    assert "has no checkpoint" in capsys.readouterr().out
    assert run(["training", "checkpoints", "ls", "tune"]) == 1
    assert "there is no training session 'tune'" in capsys.readouterr().err


def test_a_diff_tells_norms_the_largest_change_and_what_is_shared(trained, capsys):
    code, facts = told(capsys, "checkpoints", "diff", "tune:10", "tune:20", "--exit-code")
    assert code == 2
    by_name = {(each["part"], each["name"]): each for each in facts["tensors"]}
    weight = by_name["model", "w"]
    assert weight["distance"]["norm"] == pytest.approx(np.sqrt(3) * 10)
    assert weight["distance"]["largest"] == 10
    assert weight["distance"]["changed_share"] == 3 / 100_000
    assert weight["shared_bytes"] == 400_000 - 262_144
    assert by_name["optimizer", "['m']"]["distance"]["largest"] == 20
    assert ("model", "fixed") not in by_name
    values = {each["path"]: (each["first"], each["second"]) for each in facts["values"]}
    assert values["['lr']"] == ("0.1", "0.05")
    assert facts["shared_bytes"] > 20_000
    assert run(["training", "checkpoints", "diff", "tune:10", "tune:20"]) == 0
    shown = capsys.readouterr().out
    assert "['lr']" in shown
    assert "are shared" in shown
    assert run(["training", "checkpoints", "diff", "tune:10", "tune:10", "--exit-code"]) == 0
    assert "tune:10 and tune:10 are equal" in capsys.readouterr().out


def test_weights_are_restored_to_files_with_the_config_of_the_model(
    trained, halo, capsys, tmp_path
):
    assert run(["training", "checkpoints", "restore", "tune:best", "-o", "out"]) == 0
    written = load_file("out/model.safetensors")
    assert (written["w"] == trained[20]["w"]).all()
    assert not (tmp_path / "out" / "config.json").exists()
    assert run(["training", "checkpoints", "restore", "tune", "-o", "out"]) == 5
    assert "--force" in capsys.readouterr().err
    save_file(trained[10], "m.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "odd"}')
    assert run(["import", "m.safetensors", "--as", "story@1"]) == 0
    code, facts = told(capsys, "checkpoints", "restore", "tune", "-o", "out", "--force")
    assert (code, facts["step"], len(facts["files"])) == (0, 50, 2)
    assert (load_file("out/model.safetensors")["w"] == trained[50]["w"]).all()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "odd"


def test_a_checkpoint_without_weights_is_not_restored_to_files(halo, capsys):
    with halo.training.session("story@1", name="tune") as session:
        point = session.checkpoint(step=1, optimizer={"m": 1}, type="optimizer_only").checkpoint
    for named in ("tune", str(point.id)):
        assert run(["training", "checkpoints", "restore", named, "-o", "out"]) == 1
    assert "has no weights" in capsys.readouterr().err


def test_what_is_pinned_stays_until_it_is_not_any_more(trained, capsys):
    code, facts = told(capsys, "checkpoints", "pin", "tune:20")
    assert (code, facts["is_pinned"], facts["kept_because"]) == (0, True, "best, pinned")
    run(["training", "checkpoints", "pin", "tune:10"])
    assert run(["training", "prune", "tune", "--keep-last", "1", "--yes"]) == 0
    assert steps(capsys) == [10, 20, 50]
    code, facts = told(capsys, "checkpoints", "pin", "tune:10", "--off")
    assert (facts["is_pinned"], facts["kept_because"]) == (False, None)
    assert run(["training", "prune", "tune", "--keep-last", "1", "--yes"]) == 0
    assert steps(capsys) == [20, 50]


def test_pruning_lists_first_and_deletes_nothing_that_nobody_confirmed(trained, capsys):
    code, facts = told(capsys, "prune", "tune", "--keep-best", "2", "--dry-run")
    assert (code, facts["is_done"]) == (0, False)
    (session,) = facts["sessions"]
    assert [each["step"] for each in session["gone"]] == [10, 40]
    assert session["own_bytes"] == facts["own_bytes"] > 0
    assert run(["training", "prune", "tune", "--keep-best", "2"]) == 5
    shown = capsys.readouterr().err
    assert "would go" in shown
    assert "deletes 2 checkpoints, and nobody can be asked" in shown
    assert steps(capsys) == [10, 20, 30, 40, 50]
    code, facts = told(capsys, "prune", "tune", "--keep-best", "2", "--yes")
    assert facts["is_done"]
    assert steps(capsys) == [20, 30, 50]
    assert run(["training", "prune", "tune", "--keep-best", "2"]) == 0
    assert "Nothing to prune" in capsys.readouterr().out


def test_all_sessions_are_pruned_together(trained, halo, capsys):
    with halo.training.session("story@2", name="other") as session:
        for step in (1, 2, 3):
            session.checkpoint(step=step, model={"w": np.full(3, step)})
    assert run(["training", "prune", "--all", "--keep-last", "1", "--yes"]) == 0
    told_of = capsys.readouterr()
    assert "5 checkpoints went" in told_of.out
    assert "pruning other (2 of 2)" in told_of.err
    assert steps(capsys) == [20, 50]


def test_what_is_declared_of_a_training_is_the_rule_where_none_is_given(
    trained, halo, capsys, tmp_path
):
    save_file(trained[10], "m.safetensors")
    (tmp_path / "arc_halo.yaml").write_text(
        "version: 1\nproject: p\nmodels:\n  tale:\n    version: '1'\n    type: other\n"
        "    weights: m.safetensors\n"
        "training:\n  tuning:\n    model: tale\n    retention: {keep_last: 2}\n"
    )
    assert run(["apply"]) == 0
    with halo.training.session(training="tuning", name="declared", retention={}) as session:
        for step in (1, 2, 3):
            session.checkpoint(step=step, model={"w": np.full(3, step)})
    code, facts = told(capsys, "prune", "declared", "--dry-run")
    assert code == 0
    assert [each["step"] for each in facts["sessions"][0]["gone"]] == [1]
    assert run(["training", "prune", "--all", "--yes"]) == 0
    assert steps(capsys) == [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    "arguments",
    [["tune"], ["--keep-last", "1"], ["tune", "--all", "--keep-last", "1"]],
)
def test_pruning_wants_to_know_what_and_how_much(trained, capsys, arguments):
    assert run(["training", "prune", *arguments]) == 64
    assert steps(capsys) == [10, 20, 30, 40, 50]


def test_rm_lists_what_goes_and_is_refused_where_nobody_can_be_asked(halo, trained, capsys):
    assert run(["training", "rm", "tune"]) == 5
    said = capsys.readouterr().err
    assert "5 checkpoints would go" in said
    assert "once it is older than the grace" in said
    assert "say `--yes`" in said
    code, facts = told(capsys, "rm", "tune", "--dry-run")
    assert (code, facts["is_done"], facts["sessions"][0]["checkpoint_count"]) == (0, False, 5)
    assert len(steps(capsys)) == 5
    code, facts = told(capsys, "rm", "tune", "--yes")
    assert (code, facts["is_done"]) == (0, True)
    assert facts["own_bytes"] > 0
    assert halo.training.list() == []


def test_rm_asks_before_it_deletes(halo, trained, capsys, monkeypatch):
    answers = iter([False, True])
    monkeypatch.setattr("arc_halo.cli.console.Console.is_interactive", True)
    monkeypatch.setattr("arc_halo.cli.console.Console.confirm", lambda *_: next(answers))
    assert run(["training", "rm", "tune"]) == 5
    assert "nothing was changed" in capsys.readouterr().err
    assert run(["training", "rm", "tune"]) == 0
    assert "1 session, 0 points and 5 checkpoints went." in capsys.readouterr().out


def test_rm_of_what_was_forked_or_pinned_needs_force(halo, trained, capsys):
    with halo.training.session("story@1", name="child", fork_from="tune", at_step=0):
        pass
    assert run(["training", "rm", "tune", "--yes"]) == 5
    assert "--force" in capsys.readouterr().err
    assert run(["training", "rm", "tune", "--yes", "--force"]) == 0
    assert "Forks that lose a part of their history: child." in capsys.readouterr().out
