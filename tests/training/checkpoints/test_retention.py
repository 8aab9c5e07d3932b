"""What stays under a policy: never less than what is needed, never more than was asked for."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import InvalidInputError
from arc_halo.training.checkpoints.retention import RULES, Candidate, Retention, best, decide

START = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = ("full", "weights_only", "optimizer_only")
COUNTS = st.none() | st.integers(1, 5)
POLICIES = st.builds(
    Retention, keep_last=COUNTS, keep_best=COUNTS, keep_every=st.none() | st.integers(1, 7)
)
VALUES = st.none() | st.floats(-3, 3).map(round) | st.sampled_from([math.nan, math.inf, -math.inf])


@st.composite
def sessions(draw):
    steps = draw(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(TYPES)), unique=True))
    return [
        Candidate(
            id=UUID(int=place),
            step=step,
            type=kind,
            created_at=START + timedelta(seconds=draw(st.integers(0, 5))),
            value=draw(VALUES),
            is_pinned=draw(st.booleans()) and draw(st.booleans()),
            is_forked=draw(st.booleans()) and draw(st.booleans()),
        )
        for place, (step, kind) in enumerate(steps)
    ]


@given(sessions(), POLICIES, st.sampled_from(["min", "max"]))
def test_what_is_needed_stays_and_each_that_stays_has_a_reason(made, policy, mode):
    decision = decide(made, policy, mode)
    kept, gone = set(decision.kept), set(decision.gone)
    assert kept | gone == {each.id for each in made}
    assert not kept & gone
    for kind in TYPES:
        group = [each for each in made if each.type == kind]
        if group:
            latest = max(group, key=lambda each: (each.step, each.created_at, each.id))
            assert "latest" in decision.kept[latest.id]
    for each in made:
        for rule, holds in (("pinned", each.is_pinned), ("forked", each.is_forked)):
            assert not holds or rule in decision.kept[each.id]
    if policy.keeps_all:
        assert not gone
    else:
        assert all(decision.kept.values())
    for rules in decision.kept.values():
        assert list(rules) == [rule for rule in RULES if rule in rules]


@given(sessions(), POLICIES, st.sampled_from(["min", "max"]))
def test_deciding_again_over_what_stayed_changes_nothing(made, policy, mode):
    first = decide(made, policy, mode)
    again = decide([each for each in made if each.id in first.kept], policy, mode)
    assert again.gone == ()
    assert again.kept == first.kept


@given(sessions(), POLICIES)
def test_no_more_is_kept_than_was_asked_for(made, policy):
    rules = [rules for rules in decide(made, policy, "min").kept.values() if rules]
    for name in ("keep_last", "keep_best"):
        most = getattr(policy, name) or 0
        assert sum(name in each for each in rules) <= most * (3 if name == "keep_last" else 1)
    if policy.keep_every is None:
        assert not any("keep_every" in each for each in rules)


@given(sessions(), st.sampled_from(["min", "max"]))
def test_the_best_is_the_earliest_of_the_best_and_never_nan(made, mode):
    found = best(made, mode)
    values = [
        (each.value, each.step)
        for each in made
        if each.type != "optimizer_only" and each.value is not None and not math.isnan(each.value)
    ]
    if not values:
        assert found is None
        return
    most = (min if mode == "min" else max)(value for value, _ in values)
    assert (found.value, found.step) == (most, min(step for value, step in values if value == most))


def test_the_rules_of_one_session():
    made = [
        Candidate(
            id=UUID(int=step),
            step=step,
            type="full",
            created_at=START,
            value=abs(step - 43) / 10,
            is_best=step == 40,
            is_pinned=step == 10,
            is_forked=step == 30,
        )
        for step in range(10, 101, 10)
    ]
    decision = decide(made, Retention(keep_last=2, keep_best=2, keep_every=50), "min")
    assert {id_.int: ", ".join(rules) for id_, rules in decision.kept.items()} == {
        10: "pinned",
        30: "forked",
        40: "best, keep_best",
        50: "keep_best, keep_every",
        90: "keep_last",
        100: "latest, keep_last, keep_every",
    }
    assert [id_.int for id_ in decision.gone] == [20, 60, 70, 80]


@pytest.mark.parametrize("bad", [{"keep_last": 0}, {"keep_every": 0}, {"keep_best": 1.5}])
def test_a_policy_of_no_sense_is_refused(bad):
    with pytest.raises(InvalidInputError, match="whole number"):
        Retention(**bad)
