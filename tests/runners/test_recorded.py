"""Recorded answers: what files may say, how inputs find their rows, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_halo.errors import MemberError
from arc_halo.outputs import Outputs
from arc_halo.plugins import PluginManager
from arc_halo.types import RunnerContext

RUNNER = PluginManager().runner("recorded").item


def context(directory: Path) -> RunnerContext:
    def refuse(name: str) -> Any:
        raise AssertionError(name)

    return RunnerContext(
        model="m@1",
        architecture={},
        find_file=lambda label: directory / label,
        secret=refuse,
        check_url=refuse,
        predictors={},
        tensors=lambda: iter(()),
    )


def answers(path: Path, inputs: list[Any], **params: Any) -> Outputs:
    with RUNNER.open(context(path.parent), predictions=path.name, **params) as model:
        outputs = model.answer(inputs)
    outputs.check(len(inputs))
    return outputs


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_arrays_are_found_by_their_number(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3))
    np.savez(tmp_path / "a.npz", logits=logits, classes=np.array([7, 8, 9]))
    found = answers(tmp_path / "a.npz", [4, {"id": 0}, {"input": 2}])
    assert found.scores is not None
    assert np.array_equal(found.scores, logits[[4, 0, 2]])
    assert (found.meaning, found.classes) == ("logits", (7, 8, 9))


def test_rows_are_found_by_their_ids(tmp_path: Path) -> None:
    table = np.array([[0.2, 0.8], [1, 0]], np.float32)
    np.savez(tmp_path / "a.npz", probabilities=table, ids=np.array(["q1", "q2"]), costs=[3, 4])
    found = answers(tmp_path / "a.npz", ["q2", {"id": "q1", "text": "?"}], classes=["no", "yes"])
    assert found.scores is not None
    assert np.array_equal(found.scores, table[::-1])
    assert found.costs is not None
    assert (found.classes, found.costs.tolist()) == (("no", "yes"), [4, 3])


def test_lines_hold_every_form(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"classes": ["no", "yes"]},
        {"id": 1, "probabilities": [0.5, 0.5], "label": "no", "text": "well", "cost": 2,
         "ranking": ["b", "a"], "confidence": 0.25},
        {"id": "x", "probabilities": [0, 1], "label": "yes", "text": "yes", "cost": 1,
         "ranking": ["a"], "confidence": 1},
    )  # fmt: skip
    found = answers(path, ["x", 1])
    assert found.kinds == ("scores", "labels", "texts", "rankings")
    assert (found.labels, found.texts) == (("yes", "no"), ("yes", "well"))
    assert found.rankings == (("a",), ("b", "a"))
    assert found.confidence is not None
    assert found.confidence.tolist() == [1, 0.25]
    assert found.classes == ("no", "yes")


UNKNOWN = [5, -1, "q", True, None, {"id": 5}, {"text": "?"}, 1.5]


@pytest.mark.parametrize("given", UNKNOWN, ids=str)
def test_an_input_without_an_answer_is_an_error(tmp_path: Path, given: Any) -> None:
    np.savez(tmp_path / "a.npz", probabilities=np.full((5, 2), 0.5))
    with pytest.raises(MemberError, match="has no answer to the input"):
        answers(tmp_path / "a.npz", [given])


BROKEN: dict[str, list[dict[str, Any]]] = {
    "nothing known": [{"id": 1, "score": 1}],
    "two meanings": [{"probabilities": [1], "logits": [0]}],
    "uneven rows": [{"label": 1}, {"text": "a"}],
    "ragged scores": [{"scores": [1, 2]}, {"scores": [1]}],
    "no probabilities": [{"probabilities": [0.5, 0.6]}],
    "no confidence": [{"label": 1, "confidence": 2}],
    "no answer": [{"id": 1}],
    "a name twice": [{"label": 1, "labels": 2}],
    "classes that do not fit": [{"classes": ["a"]}, {"probabilities": [0.5, 0.5]}],
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_holds_no_answers_is_refused(tmp_path: Path, what: str) -> None:
    path = lines(tmp_path / "a.jsonl", *BROKEN[what])
    with pytest.raises(MemberError, match=r"a\.jsonl"):
        answers(path, [0])


def test_a_question_about_an_answer_is_found_by_the_input_that_it_is_about(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"id": 1, "label": "no"}, {"id": "x", "label": "yes"})
    about = {"member": "m@1", "answer": "no"}
    given = [{"input": {"id": "x"}, **about}, {"input": 1, **about}]
    given.append({"input": {"input": {"id": "x"}, **about}, **about})
    assert answers(path, given).labels == ("yes", "no", "yes")
    np.savez(tmp_path / "a.npz", labels=np.array(["a", "b"]))
    assert answers(tmp_path / "a.npz", [{"input": {"id": 1}, **about}]).labels == ("b",)


def test_names_may_be_in_the_singular_or_the_plural(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", label=np.array(["a", "b"]), id=np.array([5, 6]))
    assert answers(tmp_path / "a.npz", [6, 5]).labels == ("b", "a")
    path = lines(tmp_path / "a.jsonl", {"ids": 5, "labels": "a"}, {"ids": 6, "labels": "b"})
    assert answers(path, [6, 5]).labels == ("b", "a")


def test_an_id_that_is_there_twice_is_told_with_its_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"classes": ["a"]}, {"id": "x", "label": "a"},
                 {"id": 7, "label": "a"}, {"id": "x", "label": "a"})  # fmt: skip
    with pytest.raises(MemberError, match='line 4: the id "x" is that of line 2, too'):
        answers(path, [7])
    np.savez(tmp_path / "a.npz", labels=np.array(["a", "b"]), ids=np.array([5, 5]))
    with pytest.raises(MemberError, match="row 1: the id 5 is that of row 0, too"):
        answers(tmp_path / "a.npz", [5])
    np.savez(tmp_path / "a.npz", labels=np.array(["a", "b"]), ids=np.array([5]))
    with pytest.raises(MemberError, match="1 ids for 2 answers"):
        answers(tmp_path / "a.npz", [5])


def test_other_files_and_lines_are_told_what_is_wanted(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    with pytest.raises(MemberError, match=r"a\.npy: .*np\.savez\('answers\.npz', probabilities="):
        answers(tmp_path / "a.npy", [0])
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npy").read_bytes())
    with pytest.raises(MemberError, match=r"this is no \.npz file"):
        answers(tmp_path / "a.npz", [0])
    for text, message in (('{"label": 1}\n{', "line 2 is no JSON"), ("\n3", "line 2 is no object")):
        (tmp_path / "a.jsonl").write_text(text)
        with pytest.raises(MemberError, match=message):
            answers(tmp_path / "a.jsonl", [0])


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(MemberError, match=r"a\.npz"):
        answers(tmp_path / "a.npz", [0])


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK not a zip")
    (tmp_path / "a.jsonl").write_text("{")
    for name in ("a.npz", "a.jsonl"):
        with pytest.raises(MemberError, match=name):
            answers(tmp_path / name, [0])
