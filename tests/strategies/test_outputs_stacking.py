"""`stacking` is scikit-learn's StackingClassifier, to the last digits but three."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from arc_halo.errors import OutputError
from arc_halo.outputs import Outputs
from tests.strategies.answering import combine, fit, shares

NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
KINDS = ["digits", "names", "two digits", "two names"]


@pytest.fixture(scope="module", params=KINDS)
def data(request):
    numbers, labels = load_digits(return_X_y=True)
    if request.param.startswith("two"):
        numbers, labels = numbers[labels < 2], labels[labels < 2]
        numbers = numbers + np.random.default_rng(0).normal(0, 6, numbers.shape)
    labels = NAMES[labels] if "names" in request.param else labels
    half = len(labels) // 2
    return numbers[:half], labels[:half], numbers[half:]


def classifiers():
    return [
        ("tree", DecisionTreeClassifier(max_depth=4, random_state=0)),
        ("line", LogisticRegression(C=1e-4, max_iter=5000)),
        ("bayes", GaussianNB()),
    ]


def answers(estimator, numbers):
    return as_outputs(estimator.predict_proba(numbers), estimator)


def as_outputs(numbers, estimator):
    return Outputs(scores=numbers, classes=tuple(estimator.classes_.tolist()))


def stacked(data, *, passthrough=False):
    """scikit-learn's, on classifiers that were fitted to the first third of what is known."""
    known, labels, _ = data
    third = len(labels) // 3
    fitted = [(name, each.fit(known[:third], labels[:third])) for name, each in classifiers()]
    final = LogisticRegression(max_iter=20000 if passthrough else 100)
    ensemble = StackingClassifier(fitted, final, cv="prefit", passthrough=passthrough)
    return ensemble.fit(known, labels), [each for _, each in fitted]


def check(fused, ensemble, asked):
    np.testing.assert_allclose(fused.scores, ensemble.predict_proba(asked), rtol=0, atol=1e-12)
    assert list(fused.labels) == ensemble.predict(asked).tolist()
    assert fused.classes == tuple(ensemble.classes_.tolist())


def test_it_is_the_stacking_classifier_of_fitted_members(data):
    known, labels, asked = data
    ensemble, members = stacked(data)
    learnt = fit("stacking", [answers(each, known) for each in members], labels.tolist())
    np.testing.assert_allclose(
        learnt["coefficients"], ensemble.final_estimator_.coef_, rtol=0, atol=1e-12
    )
    check(
        combine("stacking", [answers(each, asked) for each in members], fitted=learnt),
        ensemble,
        asked,
    )


def test_with_out_of_fold_answers_it_is_the_cross_validated_one(data):
    known, labels, asked = data
    ensemble = StackingClassifier(classifiers()).fit(known, labels)
    out_of_fold = [
        as_outputs(cross_val_predict(each, known, labels, method="predict_proba"), ensemble)
        for _, each in classifiers()
    ]
    learnt = fit("stacking", out_of_fold, labels.tolist())
    # scikit-learn fits these to the places of the labels.
    members = [as_outputs(each.predict_proba(asked), ensemble) for each in ensemble.estimators_]
    check(combine("stacking", members, fitted=learnt), ensemble, asked)


def test_features_pass_through_beside_the_answers(data):
    known, labels, asked = data
    ensemble, members = stacked(data, passthrough=True)
    params = {"passthrough": True, "max_iter": 20000}
    learnt = fit(
        "stacking",
        [answers(each, known) for each in members],
        labels.tolist(),
        params=params,
        inputs=[{"features": row.tolist()} for row in known],
    )
    assert learnt["is_converged"]
    fused = combine(
        "stacking",
        [answers(each, asked) for each in members],
        fitted=learnt,
        params=params,
        inputs=[{"features": row.tolist()} for row in asked],
    )
    check(fused, ensemble, asked)


# scikit-learn cannot stack predictions that are texts.
@pytest.mark.parametrize("data", ["digits", "two digits"], indirect=True)
def test_labels_count_as_the_place_of_their_class(data):
    known, labels, asked = data
    third = len(labels) // 3
    fitted = [(name, each.fit(known[:third], labels[:third])) for name, each in classifiers()]
    ensemble = StackingClassifier(
        fitted, LogisticRegression(max_iter=9999), cv="prefit", stack_method="predict"
    ).fit(known, labels)

    def labelled(numbers):
        return [Outputs(labels=tuple(each.predict(numbers).tolist())) for _, each in fitted]

    learnt = fit("stacking", labelled(known), labels.tolist(), params={"max_iter": 9999})
    check(combine("stacking", labelled(asked), fitted=learnt), ensemble, asked)


@pytest.fixture
def learnt():
    members = [shares(1, 60), shares(2, 60)]
    labels = [members[0].classes[place] for place in members[0].scores.argmax(axis=1)]
    return fit("stacking", members, labels)


def test_logits_are_made_probabilities_first(learnt):
    members = [shares(3), shares(4)]
    as_logits = Outputs(
        scores=np.log(members[1].scores) + 7, meaning="logits", classes=members[1].classes
    )
    columns = [learnt["columns"][0], ["logits", learnt["columns"][1][1]]]
    fused = combine("stacking", [members[0], as_logits], fitted={**learnt, "columns": columns})
    plain = combine("stacking", members, fitted=learnt)
    np.testing.assert_allclose(fused.scores, plain.scores, rtol=1e-12)


def test_members_are_known_by_name_not_by_place(learnt):
    members = [shares(3), shares(4)]
    fused = combine("stacking", members, fitted=learnt)
    swapped = combine("stacking", members[::-1], members=("b", "a"), fitted=learnt)
    np.testing.assert_array_equal(fused.scores, swapped.scores)


def test_weights_do_not_matter(learnt):
    members = [shares(3), shares(4)]
    fused = combine("stacking", members, fitted=learnt)
    other = combine("stacking", members, weights=(0.0, 9.0), fitted=learnt)
    np.testing.assert_array_equal(fused.scores, other.scores)


def test_what_was_not_fitted_says_how_to():
    with pytest.raises(OutputError, match="it has not been fitted") as caught:
        combine("stacking", [shares(1)])
    assert caught.value.hint == "`arc-halo reactor fit NAME --data FILE` first"


def test_members_and_columns_have_to_be_those_that_were_fitted(learnt):
    with pytest.raises(OutputError, match="fitted to a, b, and there is no answer: b"):
        combine("stacking", [shares(3)], fitted=learnt)
    with pytest.raises(OutputError, match="one too many: c"):
        combine("stacking", [shares(3), shares(4), shares(5)], fitted=learnt)
    with pytest.raises(OutputError, match="other columns"):
        combine("stacking", [shares(3, columns=3), shares(4)], fitted=learnt)
    renamed = replace(shares(3), classes=("z", "y", "x", "w"))
    with pytest.raises(OutputError, match="other columns"):
        combine("stacking", [renamed, shares(4)], fitted=learnt)
    with pytest.raises(OutputError, match="fitted to 8 numbers an input, not to 9"):
        combine(
            "stacking",
            [shares(3), shares(4)],
            fitted=learnt,
            params={"passthrough": True},
            inputs=[{"features": [1]}] * 20,
        )


def test_examples_of_one_class_are_an_error():
    with pytest.raises(OutputError, match="the same label"):
        fit("stacking", [shares(1)], ["x"] * 20)


def test_texts_cannot_be_stacked():
    with pytest.raises(OutputError, match="answers with texts"):
        fit("stacking", [Outputs(texts=("a", "b"))], ["x", "y"])


def test_steps_that_do_not_suffice_are_said_to():
    members = [shares(1, 60)]
    labels = ["x" if row[0] > 0.3 else "y" for row in members[0].scores]
    assert not fit("stacking", members, labels, params={"max_iter": 1})["is_converged"]
    assert fit("stacking", members, labels)["is_converged"]


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(OutputError, match="scikit-learn is not installed") as caught:
        fit("stacking", [shares(1, 2)], ["x", "y"])
    assert caught.value.hint == "pip install 'arc-halo[fit]'"
