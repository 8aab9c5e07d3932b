"""Sessions beside one another: what differs, what is missing, what is the same."""

from __future__ import annotations

import sys
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import NotFoundError
from arc_halo.training import comparing

sys.path.insert(0, str(Path(__file__).parent))

from recorded import add_points, add_session

leaves = st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.text("ab", max_size=2))
configs = st.dictionaries(
    st.sampled_from("abc"), st.one_of(leaves, st.dictionaries(st.sampled_from("xy"), leaves))
)


def test_nested_config_is_compared_key_by_key():
    one, other = uuid4(), uuid4()
    found = comparing.settings(
        {one: {"lr": 1, "opt": {"name": "adamw", "eps": 1e-8}}, other: {"lr": 1.0, "opt": {}}}
    )
    assert [(each.key, each.is_same) for each in found] == [
        ("lr", True),
        ("opt", False),
        ("opt.eps", False),
        ("opt.name", False),
    ]
    assert found[3].values == {one: "adamw"}


@given(st.lists(configs, min_size=1, max_size=4))
def test_what_is_the_same_is_in_all_of_them_and_equal(given):
    by_session = {uuid4(): config for config in given}
    for each in comparing.settings(by_session):
        values = list(each.values.values())
        is_equal = len({(type(value) is bool, repr(value)) for value in values}) == 1
        assert each.is_same == (is_equal and len(values) == len(given))


def test_a_metric_that_one_session_lacks_is_compared_all_the_same(conn):
    one, other = add_session(conn, "one"), add_session(conn, "other", config={"lr": 1})
    add_points(conn, one, {1: 4.0, 2: 3.0})
    add_points(conn, other, {1: 5.0})
    add_points(conn, other, {1: 0.5}, "accuracy", "eval")
    found = comparing.compare(conn, ["one", other, "one"])
    assert [each.id for each in found.sessions] == [one, other]
    assert [setting.key for setting in found.differences] == ["lr"]
    accuracy, loss = found.metrics
    assert (accuracy.scope, accuracy.key, list(accuracy.summaries)) == ("eval", "accuracy", [other])
    assert [each.last for each in loss.summaries.values()] == [3.0, 5.0]
    assert comparing.compare(conn, ["one"], metric="acc*").metrics == ()


def test_a_session_that_is_not_there_cannot_be_compared(conn):
    with pytest.raises(NotFoundError):
        comparing.compare(conn, [add_session(conn, "one"), "other"])
