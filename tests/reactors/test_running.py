"""Reactors of a project, run: applied, asked, recorded, by the program and from Python."""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import yaml

from arc_halo import connect
from arc_halo.cli.given_texts import read_inputs
from arc_halo.cli.main import run
from arc_halo.errors import InvalidInputError, MemberError, NotFoundError, ReactorError
from arc_halo.reactors.evaluations import evaluation
from arc_halo.weights.collecting import collect

CLASSES = ("x", "y", "z")
PLUGIN = r"""
import time
import numpy as np
from arc_halo import FusionStrategy, ModelRunner, Outputs, hookimpl
from contextlib import contextmanager


@hookimpl
def arc_halo_fusion_strategies():
    yield FusionStrategy(name="counting", summary="counts its runs", combine_outputs=counting)
    yield FusionStrategy(name="odd", summary="what JSON is not", combine_outputs=odd)


def odd(outputs, context):
    return Outputs(
        labels=tuple(np.arange(len(context.inputs))),
        texts=("a\0b\ud83d",) * len(context.inputs),
        details={"score": np.float32(0.5), "worst": float("nan")},
    )


def counting(outputs, context):
    count = (context.state.get("memory", "runs") or 0) + 1
    context.state.set("memory", "runs", count, priority=count)
    return Outputs(labels=(count,) * len(context.inputs))


@hookimpl
def arc_halo_runners():
    yield ModelRunner(name="secretive", summary="reads a secret", open=open_secretive)


@contextmanager
def open_secretive(context):
    context.secret("HALO_TEST_KEY")
    context.check_url("https://models.example.org/v1")
    yield None
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    numbers = np.random.default_rng(1)
    for name in "abc":
        table = numbers.dirichlet(np.ones(3), size=10)
        np.savez(tmp_path / f"{name}.npz", probabilities=table, classes=np.array(CLASSES))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(directory: Path, runner: str = "recorded", **fields: Any) -> None:
    params = {"recorded": lambda name: {"params": {"predictions": f"{name}.npz"}}}
    models = {
        f"{name}@1": {
            "type": "classifier",
            "runner": {"uses": runner, **params.get(runner, lambda _: {})(name)},
        }
        for name in "abc"
    }
    reactor = {
        "type": "ensemble",
        "strategy": "weighted_average",
        "members": [{"model": "a"}, {"model": "b", "weight": 2}, {"model": "c"}],
        **fields,
    }
    manifest = {
        "version": 1,
        "project": "panel",
        "plugins": ["plugin.py"],
        "models": models,
        "reactors": {"r": reactor},
    }
    if settings := fields.pop("settings", None):
        manifest["settings"] = settings
        del reactor["settings"]
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))


def table(directory: Path, name: str) -> np.ndarray[Any, Any]:
    return np.load(directory / f"{name}.npz")["probabilities"]


def test_an_applied_reactor_answers_and_is_applied_once(directory: Path, database: str) -> None:
    write(directory, run={"record_ttl": 60})
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        assert not halo.project.plan().has_changes
        answer = halo.reactors["r"].run([3, {"id": 7}])
        one = halo.reactors["r"].run({"id": 3})
    a, b, c = (table(directory, name)[[3, 7]] for name in "abc")
    assert answer.outputs is not None
    assert answer.outputs.scores is not None
    assert np.allclose(answer.outputs.scores, (a + 2 * b + c) / 4, atol=1e-15)
    assert answer.outputs.classes == CLASSES
    assert (answer.left_out, answer.cost) == ({}, 6)
    assert one.outputs is not None
    assert one.outputs.scores is not None
    assert np.array_equal(one.outputs.scores[0], answer.outputs.scores[0])


def recorded(database: str) -> list[dict[str, Any]]:
    with psycopg.connect(database, row_factory=psycopg.rows.dict_row) as conn:
        return conn.execute("SELECT * FROM fusion_operations ORDER BY created_at").fetchall()


def members(database: str) -> list[dict[str, Any]]:
    with psycopg.connect(database, row_factory=psycopg.rows.dict_row) as conn:
        query = "SELECT * FROM fusion_operation_inputs ORDER BY operation_id, ordinal"
        return conn.execute(query).fetchall()


def ask(directory: Path, database: str, inputs: list[Any]) -> Any:
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        return halo.reactors["r"].run(inputs)


def test_a_run_is_on_record_with_what_each_member_answered(directory: Path, database: str) -> None:
    write(directory)
    answer = ask(directory, database, [3, 7])
    (row,) = recorded(database)
    assert row["id"] == answer.operation_id
    assert (row["status"], row["operation_type"]) == ("completed", "ensemble")
    assert (row["input"], row["input_count"], row["cost"]) == ([3, 7], 2, 6)
    assert row["output"]["probabilities"] == answer.outputs.scores.tolist()
    assert row["output"]["classes"] == list(CLASSES)
    assert row["execution_ms"] == pytest.approx(answer.execution_ms)
    rows = members(database)
    assert [(each["model_name"], each["status"], each["answered_count"]) for each in rows] == [
        ("a", "answered", 2), ("b", "answered", 2), ("c", "answered", 2),
    ]  # fmt: skip
    assert rows[1]["output"]["probabilities"] == table(directory, "b")[[3, 7]].tolist()
    with psycopg.connect(database) as conn:
        found = dict(conn.execute("SELECT metric, value FROM reactor_metrics").fetchall())
        (count,) = conn.execute(
            "SELECT completed_count FROM v_reactor_status WHERE reactor_name = 'r'"
        ).fetchone() or (0,)
    assert found.keys() == {"latency", "throughput", "coherence", "diversity"}
    assert found["coherence"] == pytest.approx(1 - found["diversity"])
    assert count == 1


def test_a_digest_or_nothing_is_kept_where_the_reactor_says_so(
    directory: Path, database: str
) -> None:
    write(directory, run={"record": "digest"})
    ask(directory, database, [3])
    (row,) = recorded(database)
    assert row["input"] == {"sha256": hashlib.sha256(b"[3]").hexdigest()}
    assert set(row["output"]) == {"sha256"}
    assert {frozenset(each["output"]) for each in members(database)} == {frozenset({"sha256"})}
    write(directory, run={"record": "none"})
    answer = ask(directory, database, [3])
    assert answer.operation_id is None
    assert len(recorded(database)) == 1


def test_inputs_and_answers_are_forgotten_when_their_time_is_over(
    directory: Path, database: str
) -> None:
    write(directory, run={"record_ttl": 3600})
    ask(directory, database, [3])
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE fusion_operations SET expires_at = now() - interval '1 second'")
    ask(directory, database, [4])
    first, second = recorded(database)
    assert (first["input"], first["output"]) == (None, None)
    assert second["input"] == [4]
    kept = {
        each["output"] is not None
        for each in members(database)
        if each["operation_id"] == first["id"]
    }
    assert kept == {False}


def test_large_answers_are_tensors_that_are_kept_as_long_as_the_record(
    directory: Path, database: str
) -> None:
    numbers = np.random.default_rng(5)
    tables = {name: numbers.normal(size=(10, 500)) for name in "abc"}
    for name, logits in tables.items():
        np.savez(directory / f"{name}.npz", logits=logits)
    write(directory, run={"record_ttl": 3600})
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        answer = halo.reactors["r"].run(list(range(10)))
        small = halo.reactors["r"].run([1])
        collect(halo.project.weights, grace=timedelta(0), retain_revisions=1)
        found = halo.reactors.recorded(str(answer.operation_id))
        assert halo.reactors.recorded(small.operation_id)["arrays"] == {}
    assert found["output"] == {"logits": {"tensor": "answer", "shape": [10, 500]}}
    assert found["members"][0]["output"] == {"logits": {"tensor": "a@1", "shape": [10, 500]}}
    arrays = found["arrays"]
    assert arrays.keys() == {"answer", "a@1", "b@1", "c@1"}
    assert np.array_equal(arrays["b@1"], tables["b"])
    assert np.array_equal(arrays["answer"], answer.outputs.scores)
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE fusion_operations SET expires_at = now() - interval '1 second'")
    with connect(database, project=directory) as halo:
        halo.reactors["r"].run([1])
        collect(halo.project.weights, grace=timedelta(0), retain_revisions=1)
        assert halo.reactors.recorded(answer.operation_id)["arrays"] == {}
        with halo.project.connection() as conn:
            assert conn.execute("SELECT count(*) FROM weight_sets").fetchone() == (0,)
        with pytest.raises(NotFoundError, match="there is no operation"):
            halo.reactors.recorded("nonsense")


def test_a_run_that_fails_is_on_record_with_the_reason(directory: Path, database: str) -> None:
    write(directory)
    with pytest.raises(ReactorError, match=r"r: a@1: a\.npz has no answer to the input 99"):
        ask(directory, database, [99])
    (row,) = recorded(database)
    assert row["status"] == "failed"
    assert "has no answer to the input 99" in row["error"]
    assert [each["status"] for each in members(database)] == ["failed"] * 3


def test_what_a_database_does_not_take_is_recorded_as_near_as_can_be(
    directory: Path, database: str
) -> None:
    write(directory, strategy="odd")
    answer = ask(directory, database, [1, {"id": 2, "note": "x\0y"}])
    assert answer.outputs.texts[0] == "a\0b\ud83d"
    (row,) = recorded(database)
    assert row["status"] == "completed"
    assert row["input"][1]["note"] == "x\ufffdy"
    assert row["output"]["labels"] == [0, 1]
    assert row["output"]["texts"][0] == "a\ufffdb\ufffd"
    assert row["output"]["details"] == {"score": 0.5, "worst": None}


def test_errors_do_not_say_what_a_record_may_not(directory: Path, database: str) -> None:
    write(directory, run={"record": "digest"})
    with pytest.raises(ReactorError, match="4111"):
        ask(directory, database, ["my card is 4111"])
    assert recorded(database)[0]["error"] == "AH075: not kept"
    write(directory, run={"record_ttl": 3600})
    with pytest.raises(ReactorError, match="4111"):
        ask(directory, database, ["my card is 4111"])
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE fusion_operations SET expires_at = now() - interval '1 second'")
    ask(directory, database, [1])
    kept = [(row["error"], row["input"]) for row in recorded(database)[:2]]
    told = [each["error"] for each in members(database) if each["error"]]
    assert "4111" not in repr((kept, told))


def test_many_threads_may_ask_at_once(directory: Path, database: str) -> None:
    write(directory)
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        reactor = halo.reactors["r"]
        answers: list[Any] = [None] * 10

        def one(number: int) -> None:
            answers[number] = reactor.run([number])

        threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        whole = reactor.run(list(range(10)))
    assert np.array_equal(
        np.concatenate([each.outputs.scores for each in answers]), whole.outputs.scores
    )
    assert len(recorded(database)) == 11


def test_a_strategy_remembers_between_runs(directory: Path, database: str) -> None:
    write(directory, strategy="counting")
    assert ask(directory, database, [1]).outputs.labels == (1,)
    assert ask(directory, database, [1, 2]).outputs.labels == (2, 2)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "secret": ({"runner": "secretive"}, MemberError, "HALO_TEST_KEY is not allowed here"),
    "host": (
        {"runner": "secretive", "settings": {"allow": {"secrets": ["HALO_TEST_KEY"]}}},
        MemberError, "the host models.example.org is not allowed here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_runner_gets_what_the_project_allows_and_nothing_else(
    directory: Path, database: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALO_TEST_KEY", "hunter2")
    fields, error, message = REFUSED[what]
    write(directory, **fields)
    with pytest.raises(error, match=message) as caught:
        ask(directory, database, [1])
    assert "hunter2" not in str(caught.value)


def test_what_cannot_be_run_says_why(directory: Path, database: str) -> None:
    write(directory)
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        with pytest.raises(NotFoundError, match="there is no reactor 'q'"):
            halo.reactors["q"].run([1])
        with pytest.raises(InvalidInputError, match="there is no input"):
            halo.reactors["r"].run([])
        for given in (7, None, True, b"7"):
            with pytest.raises(InvalidInputError, match="neither a text, a mapping nor a list"):
                halo.reactors["r"].run(given)  # type: ignore[arg-type]


def test_a_strategy_that_no_longer_fuses_outputs_is_told(directory: Path, database: str) -> None:
    write(directory, strategy="odd")
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
    changed = PLUGIN.replace("combine_outputs=odd", "fuse_weights=odd")
    (directory / "plugin.py").write_text(changed)
    told = pytest.raises(ReactorError, match="the strategy 'odd' does not fuse outputs")
    with connect(database, project=directory) as halo, told:
        halo.reactors["r"].run([1])


def test_a_member_that_cannot_be_opened_is_one_that_fails(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory, run={"on_failure": "skip"})
    shared = ["--database-url", database]
    assert run(["apply", *shared]) == 0
    (directory / "c.npz").unlink()
    (directory / "questions").write_text("[3]")
    capsys.readouterr()
    assert run(["reactor", "run", "r", "--input", "questions", *shared]) == 0
    assert "left out c@1: c.npz: there is no such file" in capsys.readouterr().err
    write(directory, run={"on_failure": "fallback", "fallback": "a"})
    assert run(["apply", *shared]) == 0
    assert run(["reactor", "run", "r", "--input", "questions", *shared]) == 0
    write(directory, run={"on_failure": "skip", "level": "tokens"})
    assert run(["apply", *shared]) == 0
    capsys.readouterr()
    assert run(["reactor", "run", "r", "--input", "questions", *shared]) == 1
    write(directory, run={"on_failure": "skip", "quorum": 3})
    assert run(["apply", *shared]) == 0
    assert run(["reactor", "run", "r", "--input", "questions", *shared]) == 1
    assert "its quorum is 3: c@1: c.npz: there is no such file" in capsys.readouterr().err
    write(directory)
    assert run(["apply", *shared]) == 0
    assert run(["reactor", "run", "r", "--input", "questions", *shared]) == 1
    assert "error[AH011]: c@1: c.npz: there is no such file" in capsys.readouterr().err


def test_a_quorum_that_specialists_leave_open_says_so(directory: Path, database: str) -> None:
    members = [{"model": "a"}, {"model": "b", "role": "specialist", "domains": ["maths"]}]
    write(directory, members=members, run={"quorum": 2})
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        halo.reactors["r"].run([{"id": 3, "domain": "maths"}])
        with pytest.raises(ReactorError, match="b@1 was not asked, for the domain of the input"):
            halo.reactors["r"].run([{"id": 3, "domain": "maths"}, {"id": 4}])


def test_status_tells_runs_from_evaluations(directory: Path, database: str) -> None:
    write(directory)
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        halo.reactors["r"].run([3])
        with halo.project.open_reactor("r") as reactor:
            with evaluation(reactor, None, 1):
                pass
            with pytest.raises(KeyError), evaluation(reactor, None, 1):
                raise KeyError
        status = halo.reactors.status("r")
        with halo.project.connection() as conn:
            row = conn.execute(
                "SELECT extract(epoch FROM finished_at - started_at)::float8 "
                "FROM fusion_operations WHERE operation_type = 'ensemble'"
            ).fetchone()
    assert (status["run_count"], status["operation_count"]) == (1, 3)
    assert (status["failed_run_count"], status["failed_count"]) == (0, 1)
    assert row == (status["mean_run_seconds"],)


@pytest.mark.parametrize("record", ["full", "none"])
def test_ctrl_c_is_told_what_is_on_record(
    directory: Path,
    database: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    record: str,
) -> None:
    write(directory, strategy="interrupted", run={"record": record})
    stops = "def stop(outputs, context):\n    raise KeyboardInterrupt\n"
    provides = '    yield FusionStrategy(name="interrupted", summary="", combine_outputs=stop)\n'
    changed = PLUGIN.replace(
        "\n\n@hookimpl\ndef arc_halo_fusion", f"\n\n{stops}\n@hookimpl\ndef arc_halo_fusion"
    )
    changed = changed.replace("_strategies():\n", f"_strategies():\n{provides}")
    (directory / "plugin.py").write_text(changed)
    shared = ["--database-url", database]
    assert run(["apply", *shared]) == 0
    (directory / "questions").write_text("[3]")
    (directory / "labelled").write_text('{"input": 3, "label": "x"}')
    capsys.readouterr()
    assert run(["reactor", "run", "r", "--input", "questions", *shared]) == 130
    assert run(["reactor", "eval", "r", "--data", "labelled", *shared]) == 130
    told = capsys.readouterr().err.splitlines()
    if record == "none":
        assert told == ["interrupted: nothing is on record"] * 2
    else:
        assert told == [
            "interrupted: the run is on record as failed, with what members had answered",
            "interrupted: the evaluation is on record as failed, without figures",
        ]


def test_a_circle_is_told_as_it_is_written(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edges = [("a", "b", "feeds_into"), ("c", "b", "validates"), ("c", "a", "augments")]
    interactions = [{"from": one, "to": two, "kind": kind} for one, two, kind in edges]
    write(directory, type="hierarchical", interactions=interactions)
    assert run(["validate"]) == 4
    said = capsys.readouterr().err
    assert said.count("go round in a circle") == 1
    for one, two, kind in edges:
        assert f"{one}@1 {kind} {two}@1" in said


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        ('"a"\n"b"', ["a", "b"]),
        ("1\n \n[2]\r\n", [1, [2]]),
        ("1\nand two\n", ["1\nand two"]),
        ('{"a": "\u2028"}\n2', [{"a": "\u2028"}, 2]),
        ("[b", None),
        ("{}\nb", None),
    ],
)
def test_lines_are_a_batch_where_each_is_json(text: str, inputs: list[Any] | None) -> None:
    if inputs is not None:
        assert read_inputs(text) == inputs
    else:
        with pytest.raises(InvalidInputError, match="is no JSON"):
            read_inputs(text)


@pytest.mark.parametrize("command", ["run --input", "fit --data", "eval --data"])
def test_a_file_that_is_not_utf_8_is_refused(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    write(directory)
    (directory / "odd").write_bytes(b'{"a": "\xff"}')
    verb, option = command.split()
    assert run(["apply", "--database-url", database]) == 0
    assert run(["reactor", verb, "r", option, "odd", "--database-url", database]) == 4
    assert "odd: the byte 0xFF at 7 is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("[3, 7]", 2),
        ('{"id": 3}\n{"id": 7}\n', 2),
        ("3", 1),
        ('{"id":\n 3}', 1),
        ("3\n\n7\n4\n", 3),
    ],
)
def test_the_program_takes_json_and_lines_of_it(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str], text: str, count: int
) -> None:
    write(directory)
    assert run(["apply", "--database-url", database]) == 0
    (directory / "questions").write_text(text)
    capsys.readouterr()
    shared = ["--input", "questions", "--database-url", database]
    assert run(["reactor", "run", "r", *shared]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == count
    assert set(printed.out.split()) <= set(CLASSES)
    assert run(["reactor", "run", "r", *shared, "--output", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["answer"]["probabilities"]) == count
    assert run(["reactor", "status", "--database-url", database, "--output", "json"]) == 0
    (status,) = json.loads(capsys.readouterr().out)["reactors"]
    assert status["completed_count"] == 2
    assert run(["reactor", "status", "r", "--database-url", database, "--output", "json"]) == 0
    trends = {each["metric"]: each for each in json.loads(capsys.readouterr().out)["trends"]}
    assert trends["latency"]["samples"] == 2 * count
    assert run(["reactor", "status", "r", "--database-url", database]) == 0
    assert "throughput" in capsys.readouterr().out
    assert run(["reactor", "status", "q", "--database-url", database]) == 1


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "fallback": ({"run": {"on_failure": "fallback"}}, "AH023"),
    "stranger": ({"run": {"on_failure": "fallback", "fallback": "d"}}, "AH020"),
    "quorum": ({"run": {"quorum": 4}}, "AH023"),
    "unknown": ({"run": {"quorom": 4}}, "AH003"),
    "circle": (
        {
            "type": "hierarchical",
            "interactions": [
                {"from": "a", "to": "b", "kind": "feeds_into"},
                {"from": "a", "to": "b", "kind": "validates"},
            ],
        }, "AH021",
    ),
    "merge": (
        {
            "type": "merge", "strategy": "linear", "run": {},
            "produces": {"model": "m", "version": "1"},
        }, "AH023",
    ),
    "runner": ({"runner": "recordd"}, "AH032"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_have_a_code(directory: Path, mistake: str) -> None:
    from arc_halo.errors import ManifestError

    fields, code = MISTAKES[mistake]
    write(directory, **fields)
    with connect(project=directory) as halo, pytest.raises(ManifestError) as caught:
        halo.project.desired_without_database()
    assert {problem.code for problem in caught.value.problems} == {code}
