"""Reactors fitted to examples: what they learn is kept, collected with them, and not misused."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import psycopg
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import StackingClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

import arc_halo
from arc_halo.cli.main import run
from arc_halo.errors import CorruptChunkError, OutputError
from arc_halo.project import Project
from arc_halo.store import builds, reactors
from arc_halo.weights.collecting import collect
from arc_halo.weights.reading import read_arrays
from arc_halo.weights.verifying import verify

MANIFEST = """
version: 1
project: digits
models:
  tree:
    version: 1.0.0
    type: classifier
    runner: {uses: recorded, params: {predictions: tree.npz}}
  bayes:
    version: 1.0.0
    type: classifier
    runner: {uses: recorded, params: {predictions: bayes.npz}}
reactors:
  digits:
    type: ensemble
    strategy: stacking
    members: [{model: tree}, {model: bayes}]
"""
SOME = range(600, 900)
"""What it is fitted to: the classifiers have seen those before, and are asked those after."""


@pytest.fixture(scope="module")
def ensemble():
    numbers, labels = load_digits(return_X_y=True)
    members = [
        ("tree", DecisionTreeClassifier(max_depth=6, random_state=0)),
        ("bayes", GaussianNB()),
    ]
    fitted = [(name, each.fit(numbers[:600], labels[:600])) for name, each in members]
    stacked = StackingClassifier(fitted, cv="prefit").fit(numbers[SOME], labels[SOME])
    return stacked, numbers, labels


@pytest.fixture(scope="module")
def applied(tmp_path_factory, create_database, template, ensemble):
    """A project of recorded classifiers, applied once: its directory, and a database to copy."""
    stacked, numbers, labels = ensemble
    directory = tmp_path_factory.mktemp("digits")
    for name, each in zip(("tree", "bayes"), stacked.estimators_, strict=True):
        shares = each.predict_proba(numbers)
        np.savez(directory / f"{name}.npz", probabilities=shares, classes=stacked.classes_)
    examples(directory / "labelled.jsonl", labels)
    (directory / "arc_halo.yaml").write_text(MANIFEST)
    url = create_database(template)
    assert run(["apply", "--project", str(directory), "--database-url", url, "--quiet"]) == 0
    return directory, url


@pytest.fixture
def database(applied, create_database):
    return create_database(applied[1])


@pytest.fixture
def project(tmp_path, applied, database, monkeypatch):
    shutil.copytree(applied[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    with Project(tmp_path) as opened:
        yield opened


def examples(path, labels, *, given=lambda place: {"id": place}):
    lines = [{"input": given(place), "label": int(labels[place])} for place in SOME]
    path.write_text("\n".join(map(json.dumps, lines)))


def apply(manifest):
    Path("arc_halo.yaml").write_text(manifest)
    assert run(["apply", "--quiet"]) == 0


def fit(*arguments):
    return run(["reactor", "fit", "digits", "--data", "labelled.jsonl", *arguments])


def asked(project, places):
    with project.open_reactor("digits") as opened:
        return opened.run([{"id": int(place)} for place in places]).outputs


def fitted_root(database_url):
    with psycopg.connect(database_url) as conn:
        row = conn.execute(
            "SELECT root FROM cognitive_fusion_reactors AS r "
            "LEFT JOIN weight_sets AS s ON s.id = r.fitted_set_id"
        ).fetchone()
    return row and row[0]


def test_a_fitted_reactor_is_scikit_learn_s_stacking_classifier(project, ensemble):
    stacked, numbers, _ = ensemble
    assert fit("--quiet") == 0
    fused = asked(project, range(900, 1797))
    expected = stacked.predict_proba(numbers[900:])
    np.testing.assert_allclose(fused.scores, expected, rtol=0, atol=1e-12)
    assert list(fused.labels) == stacked.predict(numbers[900:]).tolist()


def test_from_python_it_answers_with_what_was_fitted(project, ensemble, database):
    stacked, numbers, _ = ensemble
    assert fit("--quiet") == 0
    with arc_halo.connect(database, project=Path.cwd()) as halo:
        answer = halo.reactors["digits"].run({"id": 1000})
    assert list(answer.outputs.labels) == stacked.predict(numbers[1000:1001]).tolist()


def test_without_a_fit_the_error_says_how_to_come_by_one(project, capsys):
    Path("asked.json").write_text('{"id": 900}')
    assert run(["reactor", "run", "digits", "--input", "asked.json"]) == 1
    said = capsys.readouterr().err
    assert "digits: stacking: it has not been fitted" in said
    assert "`arc-halo reactor fit NAME --data FILE` first" in said


def test_the_command_says_what_was_learnt(project, capsys, database):
    assert fit("--output", "json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["members"] == ["tree@1.0.0", "bayes@1.0.0"]
    assert said["examples"] == 300
    assert said["learnt"]["coefficients"] == [10, 20]
    assert said["learnt"]["classes"] == list(range(10))
    assert said["root"] == f"sha256:{fitted_root(database).hex()}"
    assert fit() == 0
    assert "digits: stacking fitted to 300 examples and 2 members" in capsys.readouterr().out


def test_what_was_learnt_is_stored_as_it_was_learnt(project, ensemble):
    stacked, _, _ = ensemble
    assert fit("--quiet") == 0
    with project.connection() as conn:
        set_id = reactors.fitted_set(conn, "digits")
        arrays = read_arrays(project.weights, set_id, builds.set_tensors(conn, set_id))
    assert arrays["coefficients"].dtype == np.float64
    coefficients = stacked.final_estimator_.coef_
    np.testing.assert_allclose(arrays["coefficients"], coefficients, rtol=0, atol=1e-12)


def test_the_same_examples_make_the_same_fit(project, database):
    assert fit("--quiet") == 0
    first = fitted_root(database)
    assert fit("--quiet") == 0
    assert fitted_root(database) == first


def test_applying_again_keeps_the_fit(project, database):
    assert fit("--quiet") == 0
    first, before = fitted_root(database), asked(project, range(900, 950))
    apply(MANIFEST)
    apply(MANIFEST.replace("{model: tree}", "{model: tree, weight: 2.0}"))
    assert fitted_root(database) == first
    np.testing.assert_array_equal(asked(project, range(900, 950)).scores, before.scores)
    assert run(["plan", "--quiet"]) == 0  # nothing has drifted


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("members: [{model: tree}, {model: bayes}]", "members: [{model: tree}]", "other members"),
        (
            "strategy: stacking",
            "strategy: dynamic\n    params: {by: accuracy}",
            "what was learnt is stacking's",
        ),
    ],
    ids=["members", "strategy"],
)
def test_a_fit_for_another_reactor_is_not_used_and_said_to_be_one(project, old, new, why):
    assert fit("--quiet") == 0
    apply(MANIFEST.replace(old, new))
    with pytest.raises(OutputError, match=why) as caught:
        asked(project, [900])
    assert caught.value.hint == "`arc-halo reactor fit digits --data FILE` again"
    assert fit("--quiet") == 0
    assert len(asked(project, [900])) == 1
    apply(MANIFEST)
    with pytest.raises(OutputError, match=r"fitted to other members|what was learnt is dynamic's"):
        asked(project, [900])


@pytest.mark.parametrize(
    ("old", "new", "is_said"),
    [
        ("{model: tree}, {model: bayes}", "{model: tree}", True),
        ("strategy: stacking", "strategy: dynamic\n    params: {by: features}", True),
        ("strategy: stacking", "strategy: voting", False),
        ("{model: tree}", "{model: tree, cost: 3}", False),
        ("strategy: stacking", "strategy: stacking\n    run: {quorum: 2}", False),
    ],
)
def test_a_plan_that_makes_a_fit_useless_says_so(project, capsys, old, new, is_said):
    changed = MANIFEST.replace(old, new)
    for expected in (False, is_said):  # before it is fitted there is nothing to say
        Path("arc_halo.yaml").write_text(changed)
        capsys.readouterr()
        assert run(["plan"]) in (0, 2)
        assert ("`arc-halo reactor fit digits --data FILE` again" in said(capsys)) is expected
        Path("arc_halo.yaml").write_text(MANIFEST)
        assert fit("--quiet") == 0
    Path("arc_halo.yaml").write_text(changed)
    assert run(["apply"]) == 0
    assert ("changes its strategy or its members" in said(capsys)) is is_said


def said(capsys):
    """What was printed, lines joined that a narrow terminal broke."""
    return " ".join(capsys.readouterr().out.split())


def test_a_strategy_that_learns_nothing_does_not_mind_an_old_fit(project, capsys):
    assert fit("--quiet") == 0
    apply(MANIFEST.replace("stacking", "voting"))
    assert len(asked(project, [900])) == 1
    capsys.readouterr()
    assert fit() == 1
    assert "there is nothing to fit for the strategy 'voting'" in capsys.readouterr().err


def test_other_weights_of_a_member_need_another_fit(project, database):
    assert fit("--quiet") == 0
    with psycopg.connect(database) as conn:
        conn.execute(
            "UPDATE models SET weight_set_id = "
            "(SELECT fitted_set_id FROM cognitive_fusion_reactors) WHERE model_name = 'tree'"
        )
    with pytest.raises(OutputError, match=r"fitted to other weights of tree@1\.0\.0"):
        asked(project, [900])


def test_collection_keeps_a_fit_as_long_as_its_reactor_has_it(project, database, ensemble):
    _, _, labels = ensemble
    assert fit("--quiet") == 0
    assert collect(project.weights, grace=timedelta(0)).weight_sets == 0
    assert len(asked(project, [900])) == 1
    examples(Path("labelled.jsonl"), np.roll(labels, 1))
    assert fit("--quiet") == 0
    assert collect(project.weights, grace=timedelta(0)).weight_sets == 1
    apply(MANIFEST.partition("reactors:")[0])
    assert run(["destroy", "--quiet", "--yes"]) == 0
    assert collect(project.weights, grace=timedelta(0)).weight_sets == 1


def test_damage_names_the_reactor_and_is_noticed_when_it_opens(project, database):
    assert fit("--quiet") == 0
    with psycopg.connect(database) as conn:
        conn.execute("SET session_replication_role = replica")
        conn.execute("UPDATE chunk_bodies SET body = set_byte(body, 0, 255 - get_byte(body, 0))")
    touched = {
        (holder.tensor, holder.kind, holder.name)
        for finding in verify(project.weights).findings
        for holder in finding.touches
    }
    assert ("coefficients", "reactor", "digits") in touched
    with pytest.raises(CorruptChunkError):
        asked(project, [900])


def test_a_gate_and_accuracies_are_fitted_to_domains_and_features(project, ensemble):
    _, numbers, labels = ensemble

    def given(place):
        return {
            "id": place,
            "domain": "dark" if numbers[place].mean() > 5 else "light",
            "features": (numbers[place][:8] / 16).tolist(),
        }

    examples(Path("labelled.jsonl"), labels, given=given)
    for by, name in (("accuracy", "accuracies"), ("features", "gate")):
        apply(MANIFEST.replace("stacking", f"dynamic\n    params: {{by: {by}}}"))
        assert fit("--quiet") == 0
        with project.open_reactor("digits") as opened:
            fused = opened.run([given(place) for place in range(900, 1797)]).outputs
        np.testing.assert_allclose(fused.scores.sum(axis=1), 1, rtol=1e-12)
        with project.connection() as conn:
            set_id = reactors.fitted_set(conn, "digits")
            arrays = read_arrays(project.weights, set_id, builds.set_tensors(conn, set_id))
        assert arrays[name].shape == ((2, 3) if by == "accuracy" else (2, 8))


def test_accuracies_are_what_the_members_got_right(project, ensemble):
    stacked, numbers, labels = ensemble
    apply(MANIFEST.replace("stacking", "dynamic\n    params: {by: accuracy}"))
    assert fit("--quiet") == 0
    with project.connection() as conn:
        set_id = reactors.fitted_set(conn, "digits")
        arrays = read_arrays(project.weights, set_id, builds.set_tensors(conn, set_id))
    expected = [[each.score(numbers[SOME], labels[SOME])] for each in stacked.estimators_]
    np.testing.assert_allclose(arrays["accuracies"], expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n", "there is no example"),
        ('{"input": 1, "label": 1}\n\n{"input": 2', "line 3 of the examples is no JSON"),
        ('{"input": 1}', "line 1 of the examples is not an object of `input` and `label`"),
        ('{"input": 1, "label": 1, "x": 0}', "not an object of `input` and `label`"),
        ("[1, 2]", "not an object of `input` and `label`"),
        ('{"input": 1, "label": [1]}', "a label that is neither text, number nor truth value"),
    ],
)
def test_examples_that_are_none_are_errors_with_their_line(project, capsys, text, said):
    Path("labelled.jsonl").write_text(text)
    assert fit() == 4
    assert said in capsys.readouterr().err


def test_a_member_that_does_not_answer_is_named(project, database, capsys):
    Path("labelled.jsonl").write_text('{"input": {"id": 5000}, "label": 1}')
    assert fit() == 1
    assert "tree.npz has no answer to the input 5000" in capsys.readouterr().err
    assert fitted_root(database) is None
