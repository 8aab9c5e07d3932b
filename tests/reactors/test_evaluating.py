"""Evaluations: figures against those worked out by hand, and on record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import yaml

from arc_halo.cli.main import run
from arc_halo.errors import DatabaseError
from arc_halo.project import Project
from arc_halo.reactors.evaluating import BINS, calibration_error
from arc_halo.reactors.evaluations import evaluation
from arc_halo.store import operations
from arc_halo.store.operations import Finished

CLASSES = ("no", "yes")
COUNT = 400


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    numbers = np.random.default_rng(4)
    labels = numbers.integers(2, size=COUNT)
    for name, noise in (("a", 0.6), ("b", 1.2), ("c", 2.0)):
        yes = 1 / (1 + np.exp(-(2 * labels - 1 + numbers.normal(0, noise, COUNT))))
        table = np.stack([1 - yes, yes], axis=1)
        np.savez(tmp_path / f"{name}.npz", probabilities=table, classes=np.array(CLASSES))
    lines = [json.dumps({"input": i, "label": CLASSES[label]}) for i, label in enumerate(labels)]
    (tmp_path / "labelled.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(directory: Path, **fields: Any) -> None:
    models = {
        f"{name}@1": {
            "type": "classifier",
            "runner": {"uses": "recorded", "params": {"predictions": f"{name}.npz"}},
        }
        for name in "abc"
    }
    reactor = {
        "type": "ensemble",
        "strategy": "weighted_average",
        "members": [{"model": name} for name in "abc"],
        **fields,
    }
    manifest = {"version": 1, "project": "p", "models": models, "reactors": {"r": reactor}}
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))


def tables(directory: Path) -> tuple[dict[str, Any], Any]:
    lines = (directory / "labelled.jsonl").read_text().splitlines()
    labels = np.array([CLASSES.index(json.loads(line)["label"]) for line in lines])
    return {name: np.load(directory / f"{name}.npz")["probabilities"] for name in "abc"}, labels


def evaluated(database: str, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert run(["apply", "--database-url", database]) == 0
    capsys.readouterr()
    shared = ["--data", "labelled.jsonl", "--database-url", database, "--output", "json"]
    assert run(["reactor", "eval", "r", *shared, *options]) == 0
    return json.loads(capsys.readouterr().out)


def by_hand(confidence: Any, right: Any) -> float:
    """The calibration error, bin by bin as the paper writes it."""
    total = 0.0
    for bin_ in range(BINS):
        low, high = bin_ / BINS, (bin_ + 1) / BINS
        inside = (confidence > low) & (confidence <= high) | ((confidence == 0) & (bin_ == 0))
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            total += inside.sum() / len(confidence) * gap
    return total


def test_figures_are_those_worked_out_by_hand(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory)
    found = evaluated(database, capsys)
    by_name, labels = tables(directory)
    by_name = {f"{name}@1": table for name, table in by_name.items()}
    by_name["fused"] = np.mean(list(by_name.values()), axis=0)
    assert found["scores"].keys() == by_name.keys()
    for name, table in by_name.items():
        right = table.argmax(axis=1) == labels
        score = found["scores"][name]
        assert score["asked"] == COUNT
        assert score["accuracy"] == right.mean()
        assert score["calibration_error"] == pytest.approx(by_hand(table.max(axis=1), right))
        picked = table[np.arange(COUNT), labels]
        assert score["log_loss"] == pytest.approx(-np.log(picked).mean())
    assert found["scores"]["fused"]["accuracy"] > found["scores"]["b@1"]["accuracy"]
    shares = {tuple(each["members"]): each["share"] for each in found["agreement"]}
    a, b = by_name["a@1"].argmax(axis=1), by_name["b@1"].argmax(axis=1)
    assert shares["a@1", "b@1"] == (a == b).mean()
    assert len(shares) == 3


def test_an_evaluation_is_on_record_and_its_runs_are_not(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory)
    found = evaluated(database, capsys)
    with psycopg.connect(database) as conn:
        rows = conn.execute(
            "SELECT id::text, operation_type, status, input, output -> 'scores', input_count "
            "FROM fusion_operations"
        ).fetchall()
        (accuracy,) = conn.execute(
            "SELECT value FROM reactor_metrics WHERE metric = 'accuracy'"
        ).fetchone() or (None,)
    assert rows == [(found["operation"], "evaluation", "completed", None, found["scores"], COUNT)]
    assert accuracy == found["scores"]["fused"]["accuracy"]


def test_a_cascade_has_the_cost_and_the_accuracy_of_the_closed_form(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    costs, threshold = {"c": 1.0, "b": 4.0, "a": 25.0}, 0.85
    members = [
        {"model": name, "priority": place, "cost": costs[name]} for place, name in enumerate(costs)
    ]
    write(directory, type="cascade", members=members, run={"threshold": threshold})
    found = evaluated(database, capsys)
    by_name, labels = tables(directory)
    open_, cost = np.full(COUNT, True), 0.0
    decided = np.empty(COUNT, int)
    for name in costs:
        cost += costs[name] * open_.sum()
        sure = by_name[name].max(axis=1) >= threshold
        decided[open_] = by_name[name].argmax(axis=1)[open_]
        open_ &= ~sure
    assert found["cost"] == cost
    assert found["scores"]["fused"]["accuracy"] == (decided == labels).mean()
    assert found["scores"]["a@1"]["asked"] < found["scores"]["c@1"]["asked"] == COUNT


def test_calibration_of_what_is_always_right_or_never_sure() -> None:
    assert calibration_error([(1.0, True)] * 5) == 0
    assert calibration_error([(1.0, False)] * 5) == 1
    assert calibration_error([(0.0, False), (0.5, True), (0.5, False)]) == 0


BROKEN = {
    "no json": ("{", "labelled.jsonl:1: no JSON"),
    "no label": ('{"input": 1}', "labelled.jsonl:1: an input and its label are needed"),
    "nothing": ("\n", "there is no input"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_is_not_labelled_is_told_with_its_line(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    text, message = BROKEN[what]
    write(directory)
    (directory / "labelled.jsonl").write_text(text)
    assert run(["apply", "--database-url", database]) == 0
    arguments = ["reactor", "eval", "r", "--data", "labelled.jsonl", "--database-url", database]
    assert run(arguments) == 4
    assert message in capsys.readouterr().err


def test_a_reactor_is_drawn(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from xml.etree import ElementTree

    write(
        directory,
        type="hierarchical",
        interactions=[
            {"from": "a", "to": "b", "kind": "feeds_into", "weight": 0.5},
            {"from": "c", "to": "b", "kind": "validates"},
        ],
    )
    assert run(["apply", "--database-url", database]) == 0
    capsys.readouterr()
    assert run(["reactor", "graph", "r", "--database-url", database]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "m0 -. feeds_into 0.5 .-> m1" in lines
    assert "m2 -. validates 1 .-> m1" in lines
    assert ("m0 --> fuse" in lines, "m1 --> fuse" in lines) == (False, True)
    assert run(["reactor", "graph", "r", "--svg", "r.svg", "--database-url", database]) == 0
    texts = {each.text for each in ElementTree.fromstring((directory / "r.svg").read_text()).iter()}
    assert {"a@1", "b@1", "c@1", "feeds_into 0.5", "answer"} <= texts
    assert run(["reactor", "graph", "r", "--svg", "r.svg", "--database-url", database]) == 5


def test_a_true_label_that_was_ruled_out_is_an_infinite_loss(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sure = np.array([[1.0, 0.0]] * COUNT)
    np.savez(directory / "c.npz", probabilities=sure, classes=np.array(CLASSES))
    write(directory, members=[{"model": "c"}])
    found = evaluated(database, capsys)
    assert found["scores"]["c@1"]["log_loss"] == found["scores"]["fused"]["log_loss"] == "Infinity"
    assert (
        run(["reactor", "eval", "r", "--data", "labelled.jsonl", "--database-url", database]) == 0
    )
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "inf"
    assert ended(database) == [("completed", "Infinity")] * 2


def test_an_evaluation_that_does_not_come_to_its_end_has_failed(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory)
    evaluated(database, capsys)
    with Project(directory, database_url=database) as project, project.open_reactor("r") as reactor:
        with pytest.raises(KeyboardInterrupt), evaluation(reactor, None, 1):
            raise KeyboardInterrupt
        with pytest.raises(DatabaseError), evaluation(reactor, None, 1) as recorded:
            recorded.output = math.inf
        with evaluation(reactor, None, 1) as recorded:
            recorded.output = {"scores": {"fused": {"log_loss": 1}}}
        with reactor.connection() as conn:
            assert recorded.operation_id is not None
            late = Finished(
                status="failed", output=None, error="late", cost=None, execution_ms=1,
                members=(), metrics=(),
            )  # fmt: skip
            operations.finish(conn, recorded.operation_id, late)
    assert [status for status, _ in ended(database)] == [
        "completed", "failed", "failed", "completed",
    ]  # fmt: skip


def complaint(
    database: str, capsys: pytest.CaptureFixture[str], data: Path, *rows: dict[str, Any]
) -> str:
    data.write_text("\n".join(map(json.dumps, rows)))
    capsys.readouterr()
    assert run(["reactor", "eval", "r", "--data", str(data), "--database-url", database]) == 4
    return capsys.readouterr().err


def test_a_label_that_no_answer_can_be_is_refused(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = tmp_path / "odd.jsonl"
    np.savez(directory / "c.npz", probabilities=np.eye(2), classes=["0", "1"])
    write(directory, strategy="voting", members=[{"model": "c"}])
    assert run(["apply", "--database-url", database]) == 0
    right = {"input": 0, "label": "0"}
    told = complaint(database, capsys, data, right, {"input": 1, "label": 1})
    assert 'r: the label 1 of input 1 is none of the classes: "0", "1"' in told
    assert 'hint: write it as the class is: "1"' in told
    told = complaint(database, capsys, data, right, {"input": 1, "label": "zebra"})
    assert 'the label "zebra" of input 1 is none of the classes' in told
    assert "hint: leave out inputs that no member can get right" in told
    told = complaint(database, capsys, data, right, {"input": 1, "label": ["1"]})
    assert "odd.jsonl:2: the label is neither text, number nor truth value" in told
    assert ended(database) == [("failed", None)] * 2
    np.savez(directory / "c.npz", labels=["0", "1"])
    told = complaint(database, capsys, data, right, {"input": 1, "label": 1})
    assert "the label 1 of input 1 is not a text, as all decisions are" in told
    np.savez(directory / "c.npz", probabilities=np.eye(2))
    assert "none of the classes: 0, 1" in complaint(database, capsys, data, right)


def test_texts_are_right_by_what_the_strategy_takes_for_the_answer(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"a": ["It is 12.", "so 7"], "b": ["= 12.0", "8"], "c": ["twelve", "I say 8"]}
    for name, texts in said.items():
        np.savez(directory / f"{name}.npz", texts=texts)
    rows = [{"input": 0, "label": "12"}, {"input": 1, "label": 8}]
    (directory / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write(directory, strategy="self_consistency", params={"normalize": "number"})
    found = evaluated(database, capsys)
    scores = {name: each["accuracy"] for name, each in found["scores"].items()}
    assert scores == {"a@1": 0.5, "b@1": 1, "c@1": 0.5, "fused": 1}
    shares = {tuple(each["members"]): each["share"] for each in found["agreement"]}
    assert shares == {("a@1", "b@1"): 0.5, ("a@1", "c@1"): 0, ("b@1", "c@1"): 0.5}
    (directory / "asked").write_text("[0, 1]")
    assert run(["reactor", "run", "r", "--input", "asked", "--database-url", database]) == 0
    assert capsys.readouterr().out.splitlines() == ["It is 12.", "8"]
    with psycopg.connect(database) as conn:
        measured = conn.execute("SELECT value FROM reactor_metrics WHERE metric = 'coherence'")
        assert measured.fetchone() == (pytest.approx(1 / 3),)


def ended(database: str) -> list[tuple[str, Any]]:
    with psycopg.connect(database) as conn:
        return conn.execute(
            "SELECT status, output -> 'scores' -> 'fused' -> 'log_loss' FROM fusion_operations "
            "ORDER BY created_at"
        ).fetchall()
