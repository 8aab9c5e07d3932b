"""`dynamic`: gates by entropy, by accuracy and by features, against formulas."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from arc_halo.errors import OutputError
from arc_halo.outputs import Outputs
from tests.strategies.answering import combine, fit, shares

WEIGHTS = (0.5, 2.0, 1.25)
ACCURACY, FEATURES = {"by": "accuracy"}, {"by": "features"}


class Memory:
    """What a reactor remembers, as far as `dynamic` asks for it."""

    def __init__(self, accuracies):
        self.accuracies = accuracies

    def get(self, kind, key):
        assert (kind, key) == ("memory", "accuracies")
        return self.accuracies


def mixture(members, gates, weights):
    """The average by gates [members, inputs] and weights."""
    parts = np.array(weights)[:, None] * np.array(gates)
    parts = parts / parts.sum(axis=0)
    return np.einsum("mi,mic->ic", parts, [each.scores for each in members])


@pytest.mark.parametrize("temperature", [1.0, 0.2, 5.0])
def test_by_entropy_it_is_the_average_by_exp_of_minus_entropies(temperature):
    members = [shares(seed) for seed in range(3)]
    fused = combine(
        "dynamic", members, weights=WEIGHTS, params={"by": "entropy", "temperature": temperature}
    )
    gates = [np.exp(-entropy(each.scores, axis=1) / temperature) for each in members]
    np.testing.assert_allclose(fused.scores, mixture(members, gates, WEIGHTS), rtol=1e-12)
    assert (fused.meaning, fused.classes) == ("probabilities", members[0].classes)


def test_who_is_certain_counts_most_and_zeros_are_no_trouble():
    certain = Outputs(scores=np.array([[0.0, 1.0, 0.0, 0.0]]))
    unsure = Outputs(scores=np.full((1, 4), 0.25))
    fused = combine("dynamic", [certain, unsure])
    # exp(-0) against exp(-log 4), four times as much
    np.testing.assert_allclose(fused.scores, [[0.05, 0.85, 0.05, 0.05]], rtol=1e-12)


def test_a_cold_temperature_leaves_the_most_certain_alone():
    members = [shares(seed) for seed in range(3)]
    params = {"by": "entropy", "temperature": 1e-5}
    fused = combine("dynamic", members, params=params)
    best = np.argmin([entropy(each.scores, axis=1) for each in members], axis=0)
    expected = [members[place].scores[row] for row, place in enumerate(best)]
    np.testing.assert_allclose(fused.scores, expected, rtol=1e-12)


@pytest.mark.parametrize("by", ["entropy", "accuracy", "features"])
def test_equal_members_are_a_fixed_point_and_order_does_not_matter(by):
    members = [shares(seed) for seed in range(3)]
    inputs = [{"domain": "p" if row % 2 else "q", "features": [row, 1]} for row in range(20)]
    learnt = {
        "accuracies": np.array([[0.5, 0.9, 0.2], [0.6, 0.4, 0.7], [0.8, 0.8, 0.8]]),
        "domains": ["", "p", "q"],
        "gate": np.array([[0.1, 0], [-0.2, 1], [0, 0]]),
        "gate_intercepts": np.array([0.0, 1, 2]),
        "members": ["a", "b", "c"],
    }
    params = {"by": by}
    same = combine("dynamic", [members[0]] * 3, inputs=inputs, fitted=learnt, params=params)
    np.testing.assert_allclose(same.scores, members[0].scores, rtol=1e-14)
    first = combine(
        "dynamic", members, weights=WEIGHTS, inputs=inputs, fitted=learnt, params=params
    )
    for places in permutations(range(3)):
        fused = combine(
            "dynamic",
            [members[i] for i in places],
            members=tuple("abc"[i] for i in places),
            weights=tuple(WEIGHTS[i] for i in places),
            inputs=inputs,
            fitted=learnt,
            params=params,
        )
        np.testing.assert_allclose(fused.scores, first.scores, rtol=1e-13)


def test_by_accuracy_members_count_as_they_were_right_in_the_domain():
    inputs = [{"domain": d} for d in ("p", "p", "q", "q", "q")]
    right = [["x", "x", "y", "y", "y"], ["x", "y", "x", "x", "y"]]  # of x, y, x, x, x
    labels = ["x", "y", "x", "x", "x"]
    members = [Outputs(labels=tuple(each)) for each in right]
    learnt = fit("dynamic", members, labels, inputs=inputs, params=ACCURACY)
    assert learnt["domains"] == ["", "p", "q"]
    np.testing.assert_allclose(learnt["accuracies"], [[1 / 5, 1 / 2, 0], [4 / 5, 1, 2 / 3]])

    asked = [{"domain": "p"}, {"domain": "q"}, {"domain": "new"}, {"id": 3}, "text"]
    answers = [shares(seed, 5) for seed in range(2)]
    fused = combine(
        "dynamic", answers, weights=(3.0, 1.0), inputs=asked, fitted=learnt, params=ACCURACY
    )
    gates = [[0.5, 0, 0.2, 0.2, 0.2], [1, 2 / 3, 0.8, 0.8, 0.8]]
    np.testing.assert_allclose(fused.scores, mixture(answers, gates, (3.0, 1.0)), rtol=1e-13)


def test_what_is_remembered_goes_before_what_was_fitted():
    learnt = {"accuracies": np.array([[0.5], [0.5]]), "domains": [""], "members": ["a", "b"]}
    answers = [shares(seed, 2) for seed in range(2)]
    fused = combine(
        "dynamic",
        answers,
        inputs=[{"domain": "p"}, {"domain": "q"}],
        fitted=learnt,
        state=Memory({"a": {"p": 0.75}}),
        params=ACCURACY,
    )
    expected = mixture(answers, [[0.75, 0.5], [0.5, 0.5]], (1, 1))
    np.testing.assert_allclose(fused.scores, expected, rtol=1e-13)


def test_where_nobody_was_ever_right_the_weights_decide():
    learnt = {"accuracies": np.zeros((2, 1)), "domains": [""], "members": ["a", "b"]}
    answers = [shares(seed) for seed in range(2)]
    fused = combine("dynamic", answers, weights=(3.0, 1.0), fitted=learnt, params=ACCURACY)
    expected = 0.75 * answers[0].scores + 0.25 * answers[1].scores
    np.testing.assert_allclose(fused.scores, expected, rtol=1e-13)


def test_without_accuracies_the_error_says_how_to_come_by_them():
    with pytest.raises(OutputError, match="how often a is right in the domain 'p'") as caught:
        combine(
            "dynamic",
            [shares(1)],
            inputs=[{"domain": "p"}] * 20,
            state=Memory(None),
            params=ACCURACY,
        )
    assert caught.value.hint == "`arc-halo reactor fit NAME --data FILE` first"


def test_by_features_it_is_the_average_by_a_softmax_gate():
    members, numbers = [shares(seed) for seed in range(3)], np.random.default_rng(9)
    features, gate, intercepts = (numbers.normal(size=shape) for shape in ((20, 4), (3, 4), 3))
    learnt = {"gate": gate, "gate_intercepts": intercepts, "members": ["a", "b", "c"]}
    inputs = [{"features": row.tolist()} for row in features]
    fused = combine(
        "dynamic", members, weights=WEIGHTS, inputs=inputs, fitted=learnt, params=FEATURES
    )
    gates = softmax(features @ gate.T + intercepts, axis=1).T
    np.testing.assert_allclose(fused.scores, mixture(members, gates, WEIGHTS), rtol=1e-12)
    # Of those that answer alone: what is left of the gate, anew.
    some = combine(
        "dynamic",
        members[::2],
        members=("a", "c"),
        inputs=inputs,
        fitted=learnt,
        params=FEATURES,
    )
    gates = gates[::2] / gates[::2].sum(axis=0)
    np.testing.assert_allclose(some.scores, mixture(members[::2], gates, (1, 1)), rtol=1e-12)


@pytest.mark.parametrize("count", [2, 3])
def test_a_fitted_gate_trusts_who_is_right_where_it_is(count):
    """Member m is right about inputs whose feature m is the largest, and guesses elsewhere."""
    numbers = np.random.default_rng(3)
    features = numbers.normal(size=(600, count))
    labels = numbers.integers(0, 4, 600)
    is_right = features.argmax(axis=1)[:, None] == np.arange(count)
    guesses = numbers.integers(0, 4, (600, count))
    said = np.where(is_right, labels[:, None], guesses)
    members = [Outputs(scores=0.8 * np.eye(4)[column] + 0.05) for column in said.T]
    inputs = [{"features": row.tolist()} for row in features]
    first, rest = slice(0, 400), range(400, 600)
    learnt = fit(
        "dynamic",
        [each.take(range(400)) for each in members],
        labels[first].tolist(),
        inputs=inputs[first],
        params=FEATURES,
    )
    asked = [each.take(rest) for each in members]
    fused = combine("dynamic", asked, inputs=inputs[400:], fitted=learnt, params=FEATURES)
    plain = combine("weighted_average", asked)
    right, without = (
        (each.scores.argmax(axis=1) == labels[400:]).mean() for each in (fused, plain)
    )
    assert right > 0.9
    assert right > without + 0.1
    assert learnt["gate"].shape == (count, count)


@pytest.mark.parametrize(
    "inputs",
    [["text"] * 20, [{"features": [1]}] * 19 + [{"features": [1, 2]}], [{"features": ["a"]}] * 20],
    ids=["none", "uneven", "no numbers"],
)
def test_features_have_to_be_numbers_and_as_many(inputs):
    learnt = {"gate": np.ones((1, 1)), "gate_intercepts": np.ones(1), "members": ["a"]}
    with pytest.raises(OutputError, match="without `features`") as caught:
        combine("dynamic", [shares(1)], inputs=inputs, fitted=learnt, params=FEATURES)
    assert caught.value.hint


def test_other_features_or_members_than_fitted_are_an_error():
    learnt = {"gate": np.ones((1, 1)), "gate_intercepts": np.ones(1), "members": ["a"]}
    with pytest.raises(OutputError, match="fitted to 1 features and a") as caught:
        combine(
            "dynamic",
            [shares(1)],
            inputs=[{"features": [1, 2]}] * 20,
            fitted=learnt,
            params=FEATURES,
        )
    assert caught.value.hint == "`arc-halo reactor fit NAME --data FILE` again"


def test_what_was_not_fitted_says_how_to():
    with pytest.raises(OutputError, match="not been fitted") as caught:
        combine("dynamic", [shares(1)], params=FEATURES)
    assert caught.value.hint == "`arc-halo reactor fit NAME --data FILE` first"


def test_by_entropy_there_is_nothing_to_fit():
    with pytest.raises(OutputError, match="nothing to fit") as caught:
        fit("dynamic", [shares(1)], ["w"] * 20)
    assert caught.value.hint == "params: {by: accuracy} or {by: features}"


@pytest.mark.parametrize("params", [ACCURACY, FEATURES], ids=["accuracy", "features"])
def test_labels_have_to_be_classes(params):
    with pytest.raises(OutputError, match="'v' is none of the members' classes"):
        fit("dynamic", [shares(1)], ["v"] * 20, inputs=[{"features": [1]}] * 20, params=params)


def test_vectors_have_no_probabilities():
    with pytest.raises(OutputError, match="vectors; probabilities or logits"):
        combine("dynamic", [Outputs(scores=np.ones((1, 2)), meaning="vectors")])
