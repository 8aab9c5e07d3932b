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
