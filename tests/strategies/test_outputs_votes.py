"""Votes: `voting` against scikit-learn, `rank_fusion` and `self_consistency` against formulas."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.datasets import load_digits
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from arc_halo.errors import OutputError
from arc_halo.outputs import Outputs
from tests.strategies.answering import combine, shares

NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
WEIGHTS = [None, (1.0, 2.0, 1.0), (0.1, 0.2, 0.3), (2.0, 1.0, 1.0)]


def classifiers():
    """Poor enough to disagree."""
    return [
        ("tree", DecisionTreeClassifier(max_depth=5, random_state=0)),
        ("line", LogisticRegression(C=1e-4, max_iter=2000)),
        ("bayes", GaussianNB()),
    ]


@pytest.fixture(scope="module", params=[False, True], ids=["numbers", "texts"])
def digits(request):
    numbers, labels = load_digits(return_X_y=True)
    labels = NAMES[labels] if request.param else labels
    return numbers[:900], labels[:900], numbers[900:]


def learnt(digits, kind, weights):
    known, labels, asked = digits
    ensemble = VotingClassifier(classifiers(), voting=kind, weights=weights).fit(known, labels)
    members = [
        Outputs(scores=each.predict_proba(asked), classes=tuple(ensemble.classes_.tolist()))
        for each in ensemble.estimators_
    ]
    return ensemble, members, asked


@pytest.mark.parametrize("weights", WEIGHTS)
def test_hard_votes_are_those_of_scikit_learn(digits, weights):
    ensemble, members, asked = learnt(digits, "hard", weights)
    fused = combine("voting", members, weights=weights or (1.0,) * 3)
    assert list(fused.labels) == ensemble.predict(asked).tolist()
    assert len(set(map(tuple, ensemble.transform(asked)))) > 100  # they do disagree
    assert fused.classes == members[0].classes


@pytest.mark.parametrize("weights", WEIGHTS)
def test_votes_by_label_alone_are_those_of_scikit_learn(digits, weights):
    ensemble, members, asked = learnt(digits, "hard", weights)
    labelled = [
        Outputs(labels=tuple(each.classes[place] for place in each.scores.argmax(axis=1)))
        for each in members
    ]
    fused = combine("voting", labelled, weights=weights or (1.0,) * 3)
    assert list(fused.labels) == ensemble.predict(asked).tolist()
    assert fused.scores is None


@pytest.mark.parametrize("weights", WEIGHTS)
def test_soft_votes_are_those_of_scikit_learn(digits, weights):
    ensemble, members, asked = learnt(digits, "soft", weights)
    fused = combine("voting", members, weights=weights or (1.0,) * 3, params={"kind": "soft"})
    assert list(fused.labels) == ensemble.predict(asked).tolist()
    np.testing.assert_allclose(fused.scores, ensemble.predict_proba(asked), rtol=0, atol=1e-15)
    np.testing.assert_array_equal(fused.confidence, fused.scores.max(axis=1).clip(max=1))


def labels(*rows):
    return [Outputs(labels=row) for row in rows]


def test_shares_of_votes_are_scores_and_the_winner_s_is_the_confidence():
    one = Outputs(scores=np.array([[0.9, 0.1], [0.2, 0.8]]), classes=("no", "yes"))
    other = Outputs(scores=np.array([[0.4, 0.6], [0.2, 0.8]]), classes=("no", "yes"))
    fused = combine("voting", [one, other], weights=(3.0, 1.0))
    assert fused.labels == ("no", "yes")
    assert fused.scores.tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert fused.confidence.tolist() == [0.75, 1.0]
    assert fused.classes == ("no", "yes")


@pytest.mark.parametrize(
    ("ties", "winner"), [("first_class", "a"), ("primary", "c"), ("first_member", "b")]
)
def test_ties_go_where_the_param_says(ties, winner):
    members = labels(("b",), ("a",), ("c",))
    roles = ("secondary", "secondary", "primary")
    assert combine("voting", members, roles=roles, params={"ties": ties}).labels == (winner,)


def test_a_primary_without_a_say_among_equals_leaves_it_to_the_first_class():
    members = labels(("d",), ("b",), ("a",), ("b",), ("a",))
    assert combine("voting", members, params={"ties": "primary"}).labels == ("a",)


def test_the_first_class_is_so_by_its_label_not_by_its_column():
    one = Outputs(scores=np.array([[1.0, 0.0]]), classes=("z", "a"))
    other = Outputs(scores=np.array([[0.0, 1.0]]), classes=("z", "a"))
    for kind in ("hard", "soft"):
        fused = combine("voting", [one, other], params={"kind": kind})
        assert (fused.labels, fused.scores.tolist()) == (("a",), [[0.5, 0.5]])


def test_numbers_sort_as_numbers_and_before_texts():
    assert combine("voting", labels((10,), (9,))).labels == (9,)
    assert combine("voting", labels(("1",), (2,))).labels == (2,)


def test_columns_without_names_are_voted_for_by_number():
    one, other = Outputs(scores=np.eye(3)), Outputs(scores=np.eye(3)[[0, 0, 0]])
    fused = combine("voting", [one, other], weights=(2.0, 1.0))
    assert fused.labels == (0, 1, 2)
    assert fused.classes is None


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_order_of_members_does_not_matter_but_for_ties(kind):
    members, weights = [shares(seed) for seed in range(3)], (1.0, 2.5, 1.75)
    first = combine("voting", members, weights=weights, params={"kind": kind})
    for places in permutations(range(3)):
        fused = combine(
            "voting",
            [members[i] for i in places],
            weights=tuple(weights[i] for i in places),
            params={"kind": kind},
        )
        assert fused.labels == first.labels
        np.testing.assert_allclose(fused.scores, first.scores, rtol=1e-14)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_equal_members_decide_as_each_of_them(kind):
    one = shares(5)
    fused = combine("voting", [one] * 3, weights=(1.0, 0.5, 7.0), params={"kind": kind})
    assert fused.labels == tuple(one.classes[place] for place in one.scores.argmax(axis=1))
    if kind == "soft":
        np.testing.assert_allclose(fused.scores, one.scores, rtol=1e-15)


def test_a_member_s_own_label_goes_before_its_scores():
    one = Outputs(scores=np.array([[0.9, 0.1]]), classes=("a", "b"), labels=("b",))
    assert combine("voting", [one]).labels == ("b",)
    strange = Outputs(scores=np.array([[0.9, 0.1]]), classes=(1, 2), labels=(0,))
    with pytest.raises(OutputError, match="decides for 0, which is none of its classes"):
        combine("voting", [strange])


@pytest.mark.parametrize("name", ["voting", "self_consistency"])
def test_votes_below_nothing_are_an_error(name):
    members = [Outputs(labels=("a",), texts=("a",))] * 2
    for weights in ((1.0, -0.5), (0.0, 0.0)):
        with pytest.raises(OutputError) as caught:
            combine(name, members, weights=weights)
        assert caught.value.hint


def test_sums_are_compared_before_they_are_divided():
    # 0.1 + 1.8 is more than 1.9, and over the sum of all they are the same number.
    members, weights = labels(("b",), ("b",), ("a",), ("c",)), (0.1, 1.8, 1.9, 1.2)
    assert combine("voting", members, weights=weights).labels == ("b",)


def test_no_inputs_make_no_answers():
    assert combine("voting", labels((), ())).labels == ()
    empty = Outputs(scores=np.empty((0, 3)))
    for kind in ("hard", "soft"):
        assert combine("voting", [empty], params={"kind": kind}).labels == ()


def test_texts_are_no_votes_and_labels_no_probabilities():
    with pytest.raises(OutputError, match="answers with texts; labels or scores"):
        combine("voting", [Outputs(texts=("x",))])
    with pytest.raises(OutputError, match="scores are needed"):
        combine("voting", labels(("a",)), params={"kind": "soft"})


def fused_ranks(rankings, weights, k=60):
    """As the paper has it: what is not ranked adds nothing."""
    things = {thing for ranking in rankings for thing in ranking}
    sums = {
        thing: sum(
            w / (k + ranking.index(thing) + 1)
            for w, ranking in zip(weights, rankings, strict=True)
            if thing in ranking
        )
        for thing in things
    }
    return tuple(sorted(things, key=lambda thing: (-sums[thing], thing)))


RANKING = st.lists(st.sampled_from("abcdef"), unique=True).map(tuple)


@given(st.lists(RANKING, min_size=1, max_size=4), st.sampled_from([0, 1, 60, 500]))
def test_rankings_are_fused_by_reciprocal_ranks(rankings, k):
    weights = (1.0, 0.5, 2.0, 1.0)[: len(rankings)]
    members = [Outputs(rankings=(ranking,)) for ranking in rankings]
    fused = combine("rank_fusion", members, weights=weights, params={"k": k})
    assert fused.rankings == (fused_ranks(rankings, weights, k),)


def test_equal_rankings_are_a_fixed_point():
    ranking = ("d", "a", "c")
    assert combine("rank_fusion", [Outputs(rankings=(ranking,))] * 3).rankings == (ranking,)


def test_scores_are_fused_by_their_ranks_equal_ones_alike():
    rows = [np.random.default_rng(seed).integers(0, 4, (10, 6)) for seed in range(3)]
    members = [Outputs(scores=each.astype(float), meaning="scores") for each in rows]
    weights = (1.0, 2.0, 0.25)
    fused = combine("rank_fusion", members, weights=weights)
    expected = sum(
        w / (60 + rankdata(-each, method="min", axis=1))
        for w, each in zip(weights, rows, strict=True)
    )
    np.testing.assert_allclose(fused.scores, expected, rtol=1e-14)
    assert fused.meaning == "scores"


def test_ranks_do_not_depend_on_what_scores_measure():
    one, other = shares(1), shares(2)
    as_logits = Outputs(scores=np.log(one.scores) * 9 - 4, meaning="logits", classes=one.classes)
    fused = combine("rank_fusion", [one, other])
    np.testing.assert_array_equal(fused.scores, combine("rank_fusion", [as_logits, other]).scores)
    assert fused.classes == one.classes


def test_a_thing_ranked_twice_is_an_error():
    with pytest.raises(OutputError, match="ranks something twice for input 0"):
        combine("rank_fusion", [Outputs(rankings=(("a", "b", "a"),))])
    with pytest.raises(OutputError, match="scores are needed"):
        combine("rank_fusion", [Outputs(labels=("a",))])


def texts(*said):
    return [Outputs(texts=(each,)) for each in said]


def said(members, normalize="strip", **context):
    fused = combine("self_consistency", members, params={"normalize": normalize}, **context)
    return fused.texts[0], fused.confidence[0]


def test_the_answer_that_most_give_wins_in_the_words_of_the_first():
    assert said(texts("no", " yes ", "yes")) == (" yes ", 2 / 3)
    assert said(texts("no", "yes", "yes"), weights=(3.0, 1.0, 1.0)) == ("no", 0.6)


@pytest.mark.parametrize(
    ("normalize", "one", "other", "are_equal"),
    [
        ("none", "a", "a ", False),
        ("strip", "a\n", " a", True),
        ("strip", "A", "a", False),
        ("casefold", "Straße  is\nlong", "STRASSE IS LONG", True),
        ("casefold", "x\N{SUPERSCRIPT TWO}", "X2", True),
        ("number", "so it is 1,200.50 dollars", "1200.5", True),
        ("number", "2 + 2 = 4", "The answer is 4.", True),
        ("number", "-3", "3", False),
        ("number", "it is -0", "0.00", True),
        ("number", "1e3", "1000", True),
        ("number", "10-12", "12", True),
        ("number", "x = -12", "12", False),
        ("number", "1,2,3", "3", True),
        ("number", "1,234,567", "1234567", True),
        ("number", "0." + "1" * 40, "0." + "1" * 41, False),
        ("number", "5 then 6", "6 then 5", False),
        ("number", " none ", "none", True),
        ("last_line", "I think\n\nThe  Answer\n \n", "the answer", True),
        ("last_line", "yes\nno", "yes", False),
    ],
)
def test_texts_are_the_same_answer_as_the_param_says(normalize, one, other, are_equal):
    members = texts("something else", one, other)
    expected = one if are_equal else "something else"
    assert said(members, normalize)[0] == expected


@given(st.text())
def test_any_text_can_be_normalized(text):
    for normalize in ("none", "strip", "casefold", "number", "last_line"):
        assert said(texts(text, text), normalize) == (text, 1.0)


def test_of_equals_the_earliest_member_s_wins():
    assert said(texts("b", "a", "a", "b")) == ("b", 0.5)


def test_the_order_of_members_does_not_matter_but_for_ties_of_texts():
    members, weights = texts("a", "b", "a", "c"), (1.0, 1.5, 1.0, 1.0)
    for places in permutations(range(4)):
        found = said([members[i] for i in places], weights=tuple(weights[i] for i in places))
        assert found == ("a", 2 / 4.5)


def test_labels_are_no_texts():
    with pytest.raises(OutputError, match="texts are needed") as caught:
        said(labels(("a",)))
    assert caught.value.hint == "take voting for labels and scores"
