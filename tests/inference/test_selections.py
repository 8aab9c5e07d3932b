"""Parts of activations: positions, dtypes, and what can be taken out of what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import InvalidInputError
from arc_halo.inference.inputs import given_parts, input_digest
from arc_halo.inference.selections import (
    Selection,
    cast,
    given_positions,
    place_among,
    resolve,
    worth_keeping,
)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (None, None), ("last", (3,)), (0, (0,)), (-4, (0,)), (slice(None, None, 2), (0, 2)),
        ([3, 0], (3, 0)), (np.array([1, -1]), (1, 3)), (range(4), None), (slice(None), None),
    ],
)  # fmt: skip
def test_positions_become_numbers_from_0(positions, expected):
    assert resolve(given_positions(positions), 4) == expected


@pytest.mark.parametrize("positions", [4, -5, [0, 9], [], slice(9, None), "first", 1.5, [None]])
def test_positions_that_are_none_are_refused(positions):
    with pytest.raises(InvalidInputError):
        resolve(given_positions(positions), 4)


CHOICES = (
    st.none()
    | st.just("last")
    | st.integers(-6, 5)
    | st.lists(st.integers(-6, 5), min_size=1, max_size=4)
    | st.builds(slice, *[st.none() | st.integers(-7, 7)] * 2, st.sampled_from([None, 1, 2, -1]))
)


@given(CHOICES, st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_what_is_kept_of_each_pass_has_what_is_chosen_in_the_end(positions, passes):
    starts = [sum(passes[:place]) for place in range(len(passes) + 1)]
    kept = {
        place
        for start, count in zip(starts, passes, strict=False)
        for place in worth_keeping(given_positions(positions), range(start, start + count))
    }
    try:
        chosen = resolve(given_positions(positions), starts[-1])
    except InvalidInputError:
        return
    assert set(range(starts[-1]) if chosen is None else chosen) <= kept


def test_of_the_last_token_little_is_kept():
    assert worth_keeping("last", range(100)) == [99]
    assert worth_keeping([-2], range(100, 101)) == [100]
    assert worth_keeping([3, 7, 105], range(100)) == [3, 7]
    assert worth_keeping(slice(0, 200, 50), range(60, 160)) == [100, 150]


@given(
    st.none() | st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    st.none() | st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
)
def test_what_is_taken_out_of_more_is_what_would_have_been_kept(stored, asked):
    whole = np.arange(12).reshape(1, 6, 2)
    kept = Selection(positions=stored)
    if kept.has(Selection(positions=asked)):
        array = chosen(whole, stored)
        found = array if asked is None else array[:, list(place_among(kept, asked))]
        assert np.array_equal(found, chosen(whole, asked))
    else:
        assert stored is not None
        assert asked is None or set(asked) - set(stored)


def chosen(array, positions):
    return array if positions is None else array[:, list(positions)]


def test_a_selection_comes_back_from_json():
    for selection in (Selection(), Selection(positions=(3, 1), dtype="BF16")):
        assert Selection.from_json(selection.as_json()) == selection


def test_infinities_may_be_cast_and_may_not_come_of_it():
    array = np.array([np.inf, 1.0], np.float32)
    assert cast(array, "x", "F16").dtype == np.float16
    with pytest.raises(InvalidInputError, match="up to 7e\\+04"):
        cast(np.array([7e4], np.float32), "x", "F16")
    assert cast(np.array([7]), "x", "F16").dtype.kind == "i"


def test_digests_of_inputs_differ_by_every_part_of_them():
    inputs = [
        given_parts([1, 2]), given_parts([2, 1]), given_parts([[1], [2]]), given_parts([1, 2, 3]),
        given_parts([1, 2], [1, 0]), given_parts([1, 2], [0, 1]),
        given_parts([1, 2], None, {"token_type_ids": [[0, 1]]}),
        given_parts([1, 2], None, {"position_ids": [[1, 2]]}),
        given_parts(None, None, {"inputs_embeds": np.zeros((1, 2), np.float32)}),
        given_parts(None, None, {"inputs_embeds": np.zeros((1, 2), np.float64)}),
    ]  # fmt: skip
    assert len({input_digest(each) for each in inputs}) == len(inputs)


@pytest.mark.parametrize("ids", [[], [1.5], "text", [[[1]]], [[1], [1, 2]]])
def test_what_is_no_token_is_refused(ids):
    with pytest.raises(InvalidInputError):
        given_parts(ids)
