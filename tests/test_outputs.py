"""Answers of a batch: taken apart, put together again, and held against what they may be."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import OutputError
from arc_halo.outputs import Outputs, joined


def outputs(count: int, seed: int = 0) -> Outputs:
    numbers = np.random.default_rng(seed)
    return Outputs(
        scores=numbers.dirichlet(np.ones(3), size=count),
        classes=("a", "b", "c"),
        labels=tuple(numbers.integers(9, size=count).tolist()),
        texts=tuple(f"text {i}" for i in range(count)),
        confidence=numbers.uniform(size=count),
        costs=numbers.uniform(size=count),
    )


@given(order=st.permutations(range(9)), cuts=st.sets(st.integers(1, 8), max_size=4))
def test_what_is_taken_apart_can_be_put_together(order: list[int], cuts: set[int]) -> None:
    whole = outputs(9)
    bounds = [0, *sorted(cuts), 9]
    parts = [order[a:b] for a, b in pairwise(bounds)]
    again = joined([(part, whole.take(part)) for part in parts], 9)
    again.check(9)
    for name in ("scores", "confidence", "costs"):
        assert np.array_equal(getattr(again, name), getattr(whole, name))
    assert (again.labels, again.texts, again.classes) == (whole.labels, whole.texts, whole.classes)


def test_forms_that_only_some_have_are_left_out() -> None:
    one, other = Outputs(labels=(1, 2), texts=("a", "b")), Outputs(labels=(3,))
    found = joined([([2, 0], one), ([1], other)], 3)
    assert (found.labels, found.texts) == ((2, 3, 1), None)
    with pytest.raises(OutputError, match="unlike forms"):
        joined([([0], Outputs(labels=(1,))), ([1], Outputs(texts=("a",)))], 2)


def test_costs_that_only_some_have_are_unknown_for_the_others() -> None:
    one, other = Outputs(labels=(1,), costs=np.array([2.0])), Outputs(labels=(3,))
    found = joined([([0], one), ([1], other)], 2)
    assert found.costs is not None
    assert np.array_equal(found.costs, [2, np.nan], equal_nan=True)


NONSENSE: dict[str, tuple[Outputs, str]] = {
    "nothing": (Outputs(), "no answer"),
    "too many": (Outputs(labels=(1, 2, 3)), "3 labels for 2 inputs"),
    "vector": (Outputs(scores=np.ones(2)), "not"),
    "no columns": (Outputs(scores=np.ones((2, 0))), "not"),
    "classes": (Outputs(scores=np.full((2, 2), 0.5), classes=("a",)), "2 columns of scores for 1"),
    "NaN": (Outputs(scores=np.full((2, 2), np.nan), meaning="vectors"), "NaN"),
    "infinite": (Outputs(scores=np.full((2, 2), np.inf), meaning="scores"), "infinite"),
    "logits": (Outputs(scores=np.full((2, 2), -np.inf), meaning="logits"), "nothing"),
    "sum": (Outputs(scores=np.full((2, 2), 0.4)), "add up to 1"),
    "negative": (Outputs(scores=np.array([[1.5, -0.5]] * 2)), "negative"),
    "confidence": (Outputs(labels=(1, 2), confidence=np.array([0, 1.5])), "confidence"),
    "costs": (Outputs(labels=(1, 2), costs=np.array([0, np.inf])), "cost"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_noticed(what: str) -> None:
    given_, message = NONSENSE[what]
    with pytest.raises(OutputError, match=message):
        given_.check(2)


FINE: dict[str, Any] = {
    "ruled out": Outputs(scores=np.array([[0, -np.inf]] * 2), meaning="logits"),
    "from float16": Outputs(scores=np.full((2, 3), float(np.float16(1 / 3)))),
    "vectors": Outputs(scores=np.array([[-4.0, 9.0]] * 2), meaning="vectors"),
}


@pytest.mark.parametrize("what", FINE)
def test_what_makes_sense_is_taken(what: str) -> None:
    FINE[what].check(2)


def test_lists_and_other_numbers_become_what_the_fields_are() -> None:
    given_: dict[str, Any] = {
        "scores": [[1, 0], [0.5, 0.5]],
        "classes": ["a", "b"],
        "labels": np.array([3, 4]),
        "texts": ["x", "y"],
        "rankings": [["p", "q"], ["q", "p"]],
        "confidence": np.array([1, 0], np.float16),
        "costs": [1, 2],
    }
    found = Outputs(**given_)
    found.check(2)
    assert found.scores is not None
    assert (found.scores.dtype, found.scores.tolist()) == (np.float64, given_["scores"])
    assert (found.classes, found.labels, found.texts) == (("a", "b"), (3, 4), ("x", "y"))
    assert all(type(each) is int for each in found.labels)
    assert found.rankings == (("p", "q"), ("q", "p"))
    assert all(type(each) is int for each in Outputs(labels=(np.int64(3), 4)).labels or ())
    assert (found.take([1]).confidence, found.take([1]).costs) == ([0.0], [2.0])


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "ragged": ({"scores": [[1], [0.5, 0.5]]}, "scores are no numbers"),
    "words": ({"confidence": ["high", "low"]}, "confidence are no numbers: list"),
    "one confidence": ({"labels": (1,), "confidence": 0.5}, "the single number 0.5"),
    "no shape": ({"labels": (1,), "costs": np.float64(2)}, "costs is the single number 2.0"),
    "one text": ({"texts": "ab"}, "texts are no list: str 'ab'"),
    "labels": ({"labels": {1, 2}}, "labels are no list"),
    "details": ({"labels": (1, 2), "details": ["x"]}, "details are a mapping, not list"),
}


@pytest.mark.parametrize("what", ODD)
def test_what_cannot_become_answers_is_told(what: str) -> None:
    given_, message = ODD[what]
    with pytest.raises(OutputError, match=message):
        Outputs(**given_)


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "texts": ({"texts": ["a", 3]}, "texts hold int '3', which is no text"),
    "labels": ({"labels": ["a", ["b"]]}, "labels hold list"),
    "rankings": ({"rankings": ["ab", "ba"]}, "rankings hold str 'ab'"),
    "meaning": ({"scores": [[1.0]] * 2, "meaning": "probs"}, "scores that mean 'probs'"),
    "columns": ({"labels": [1, 2], "confidence": [[0.5], [0.5]]}, "one number an input"),
    "confidence": ({"confidence": [0.5, 1]}, "a confidence alone only judges"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_stands_in_answers_is_looked_at(what: str) -> None:
    given_, message = UNFIT[what]
    with pytest.raises(OutputError, match=message):
        Outputs(**given_).check(2)


def test_a_confidence_alone_is_a_judgement() -> None:
    Outputs(confidence=[0.5, 1]).check(2, is_judgement=True)
    with pytest.raises(OutputError, match="no answer"):
        Outputs().check(2, is_judgement=True)
