"""Sessions found by what they are called; series and envelopes against numpy."""

from __future__ import annotations

import math
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.store import training_reading
from arc_halo.training import reading

sys.path.insert(0, str(Path(__file__).parent))

from recorded import BEGAN, add_points, add_session

ODD = [math.nan, math.inf, -math.inf, -0.0, 1e300, -1e300, 5e-324, sys.float_info.max]

steps = st.one_of(st.integers(0, 40), st.integers(0, 2**62), st.integers(2**63 - 5, 2**63 - 1))
values = st.one_of(st.sampled_from([0.0, 1.0, *ODD]), st.floats())
histories = st.dictionaries(steps, values, max_size=60)
with_conn = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def assert_is(series, points):
    """That the series is exactly these points, in order."""
    expected = sorted(points)
    assert series.steps.tolist() == expected
    np.testing.assert_array_equal(series.values, [points[step] for step in expected])


def merged(own, inherited, up_to):
    return {step: value for step, value in inherited.items() if step <= up_to} | own


def test_a_series_is_columns_in_the_order_of_steps(conn):
    session = add_session(conn)
    add_points(conn, session, [(30, 1.5), (10, math.nan), (20, -math.inf)])
    found = reading.series(conn, session, "loss")
    assert len(found) == 3
    assert_is(found, {10: math.nan, 20: -math.inf, 30: 1.5})
    np.testing.assert_array_equal(found.epochs, np.array([1, 2, 3], np.float32))
    assert found.times[0] == np.datetime64(BEGAN.replace(tzinfo=None), "us") + 10_000_000
    assert [found.steps.dtype, found.values.dtype, found.epochs.dtype] == ["i8", "f8", "f4"]


def test_an_epoch_that_was_not_given_is_nan(conn):
    session = add_session(conn)
    add_points(conn, session, {1: 1.0}, epoch_steps=None)
    assert np.isnan(reading.series(conn, session, "loss").epochs).all()
    assert np.isnan(reading.envelope(conn, session, "loss").epochs).all()


def test_a_series_of_several_pages_is_whole(conn, monkeypatch):
    monkeypatch.setattr(training_reading, "PAGE_POINTS", 7)
    session = add_session(conn)
    for count in (6, 7, 8, 70):
        add_points(conn, session, {3 * i: i / 3 for i in range(count)}, f"of {count}")
        assert_is(
            reading.series(conn, session, f"of {count}"), {3 * i: i / 3 for i in range(count)}
        )


def test_a_part_of_a_series_is_read_alone(conn):
    session = add_session(conn)
    add_points(conn, session, {i: float(i) for i in range(20)})
    assert reading.series(conn, session, "loss", first=5, last=7).steps.tolist() == [5, 6, 7]
    assert len(reading.series(conn, session, "loss", first=7, last=5)) == 0
    assert len(reading.series(conn, session, "loss", first=100)) == 0


def test_a_series_that_is_not_there_is_an_error_that_says_what_is(conn):
    session = add_session(conn)
    add_points(conn, session, {1: 1.0}, "accuracy", "eval")
    with pytest.raises(NotFoundError) as no_scope:
        reading.series(conn, session, "accuracy")
    assert no_scope.value.hint == "it has one of eval"
    with pytest.raises(NotFoundError) as misspelt:
        reading.envelope(conn, session, "acuracy", scope="eval")
    assert misspelt.value.hint == "did you mean 'accuracy'?"


def test_a_fork_has_its_parents_history_up_to_its_step(conn):
    first = add_session(conn)
    add_points(conn, first, {i: float(i) for i in range(0, 100, 10)})
    second = add_session(conn, parent_id=first, forked_at_step=50)
    add_points(conn, second, {i: 1000.0 + i for i in range(60, 100, 10)})
    third = add_session(conn, parent_id=second, forked_at_step=70)
    add_points(conn, third, {70: -1.0, 80: -2.0})
    expected = {i: float(i) for i in range(0, 60, 10)} | {60: 1060.0, 70: -1.0, 80: -2.0}
    assert_is(reading.series(conn, third, "loss"), expected)
    assert_is(reading.series(conn, first, "loss"), {i: float(i) for i in range(0, 100, 10)})
    (told,) = reading.summaries(conn, third)
    assert (told.count, told.last, told.low_step, told.high_step) == (9, -2.0, 80, 60)


def test_a_fork_of_an_early_step_has_nothing_of_what_its_parents_inherited_later(conn):
    first = add_session(conn)
    add_points(conn, first, {i: float(i) for i in range(10)})
    second = add_session(conn, parent_id=first, forked_at_step=8)
    third = add_session(conn, parent_id=second, forked_at_step=3)
    assert reading.series(conn, third, "loss").steps.tolist() == [0, 1, 2, 3]


def test_a_child_that_is_no_fork_inherits_nothing(conn):
    parent = add_session(conn)
    add_points(conn, parent, {1: 1.0})
    child = add_session(conn, parent_id=parent)
    assert reading.list_series(conn, child) == []


def test_sessions_that_are_each_others_parents_do_not_hang(conn):
    first = add_session(conn, forked_at_step=5)
    second = add_session(conn, parent_id=first, forked_at_step=5)
    conn.execute("UPDATE training_sessions SET parent_id = %s WHERE id = %s", [second, first])
    add_points(conn, first, {1: 1.0})
    add_points(conn, second, {2: 2.0})
    assert_is(reading.series(conn, second, "loss"), {1: 1.0, 2: 2.0})


@with_conn
@given(
    own=histories, inherited=histories, older=histories, at=steps, at_first=steps, data=st.data()
)
def test_own_points_win_and_every_buckets_extremes_are_kept(
    conn, own, inherited, older, at, at_first, data
):
    first = add_session(conn)
    add_points(conn, first, older)
    second = add_session(conn, parent_id=first, forked_at_step=at_first)
    add_points(conn, second, inherited)
    third = add_session(conn, parent_id=second, forked_at_step=at)
    add_points(conn, third, own)
    points = merged(own, merged(inherited, older, at_first), at)
    if not points:
        assert reading.list_series(conn, third) == []
        return
    whole = reading.series(conn, third, "loss")
    assert_is(whole, points)
    buckets = data.draw(st.integers(1, 70))
    low, high = sorted(data.draw(st.tuples(steps, steps)))
    for first_step, last_step in ((0, 2**63 - 1), (low, high)):
        found = reading.envelope(
            conn, third, "loss", buckets=buckets, first=first_step, last=last_step
        )
        inside = (whole.steps >= first_step) & (whole.steps <= last_step)
        assert_envelope(found, whole.steps[inside], whole.values[inside], buckets)


def assert_envelope(found, steps, values, buckets):
    assert len(found) <= buckets
    assert found.counts.sum() == steps.size
    assert (found.first_steps[1:] > found.last_steps[:-1]).all()
    for i in range(len(found)):
        inside = (steps >= found.first_steps[i]) & (steps <= found.last_steps[i])
        of_bucket, at = values[inside], steps[inside]
        finite = np.isfinite(of_bucket)
        assert found.counts[i] == inside.sum()
        assert found.not_finite[i] == (~finite).sum()
        assert (found.first_steps[i], found.last_steps[i]) == (at[0], at[-1])
        if not finite.any():
            assert math.isnan(found.lows[i])
            assert math.isnan(found.highs[i])
            assert math.isnan(found.means[i])
            assert found.low_steps[i] == found.high_steps[i] == -1
            continue
        there, at = of_bucket[finite], at[finite]
        assert (found.lows[i], found.low_steps[i]) == (there.min(), at[there == there.min()][0])
        assert (found.highs[i], found.high_steps[i]) == (there.max(), at[there == there.max()][0])
        if np.abs(there).max() < 1e288:
            np.testing.assert_allclose(
                found.means[i], there.mean(), rtol=1e-9, atol=1e-12 * np.abs(there).max()
            )
        else:
            assert math.isnan(found.means[i])


def test_a_spike_of_one_point_always_shows(conn):
    session = add_session(conn)
    points = dict.fromkeys(range(5000), 1.0) | {3210: 77.0, 3211: math.nan, 17: -math.inf}
    add_points(conn, session, points)
    found = reading.envelope(conn, session, "loss", buckets=10)
    assert len(found) == 10
    assert (found.highs.max(), found.high_steps[found.highs.argmax()]) == (77.0, 3210)
    assert found.lows.min() == 1.0
    assert found.not_finite.tolist() == [1, 0, 0, 0, 0, 0, 1, 0, 0, 0]


@given(first=steps, length=st.integers(0, 2**62), count=st.integers(1, 200))
def test_ranges_cover_all_steps_once(first, length, count):
    last = min(first + length, 2**63 - 1)
    firsts, lasts = reading.ranges(first, last, count)
    assert (firsts[0], lasts[-1]) == (first, last)
    assert len(firsts) == min(count, last - first + 1)
    assert [each - 1 for each in firsts[1:]] == lasts[:-1]
    lengths = [end - begin for begin, end in zip(firsts, lasts, strict=True)]
    assert max(lengths) - min(lengths) <= 1


def test_no_buckets_are_an_error(conn):
    with pytest.raises(InvalidInputError):
        reading.envelope(conn, add_session(conn), "loss", buckets=0)


def test_series_are_listed_by_scope_and_key(conn):
    parent = add_session(conn)
    add_points(conn, parent, {1: 1.0}, "loss", "eval")
    session = add_session(conn, parent_id=parent, forked_at_step=1)
    add_points(conn, session, {1: 1.0}, "loss")
    add_points(conn, session, {1: 1.0}, "lr")
    add_points(conn, session, {}, "never logged")
    listed = [str(each) for each in reading.list_series(conn, session)]
    assert listed == ["eval/loss", "train/loss", "train/lr"]
    assert [str(k) for k in reading.list_series(conn, session, metric="lo*")] == listed[:2]
    assert [str(k) for k in reading.list_series(conn, session, scope="train")] == listed[1:]
    assert [each.key for each in reading.summaries(conn, session, metric="l?")] == ["lr"]


@with_conn
@given(listed=st.lists(histories, min_size=1, max_size=5))
def test_series_are_summed_up_together_as_they_are_one_by_one(conn, monkeypatch, listed):
    monkeypatch.setattr(training_reading, "SUMMARIES_AT_ONCE", 2)
    session = add_session(conn)
    for i, points in enumerate(listed):
        add_points(conn, session, points, f"metric-{i}")
    expected = [reading._summary(conn, key, spans) for key, spans in reading._lines(conn, session)]
    found = reading.summaries(conn, session)
    assert str(found) == str(expected)
    assert [each.count for each in found] == [len(points) for points in listed if points]


def test_a_series_without_a_finite_value_has_no_extremes(conn):
    session = add_session(conn)
    add_points(conn, session, {1: math.nan, 2: math.inf})
    (told,) = reading.summaries(conn, session)
    assert (told.count, told.not_finite, told.last) == (2, 2, math.inf)
    assert (told.low, told.low_step, told.high, told.high_step, told.mean) == (None,) * 5


def test_a_session_is_found_by_its_id_the_beginning_of_it_or_its_name(conn):
    older = add_session(conn, "night", started_at=BEGAN)
    newer = add_session(conn, "night", started_at=BEGAN + timedelta(hours=1))
    for named in (
        older,
        str(older),
        older.hex,
        str(older)[:6],
        str(older)[:13],
        older.hex[:6].upper(),
    ):
        assert reading.session(conn, named).id == older
    assert reading.session(conn, "night").id == newer


def test_a_name_that_looks_like_an_id_is_a_name(conn):
    one = add_session(conn)
    named = add_session(conn, str(one)[:8])
    assert reading.session(conn, str(one)[:8]).id == named
    assert reading.session(conn, str(one)).id == one


def test_the_beginning_of_several_ids_is_refused_with_all_of_them(conn):
    ids = [f"abcdef12-0000-0000-0000-00000000000{i}" for i in range(2)]
    for each in ids:
        add_session(conn, id=each)
    with pytest.raises(InvalidInputError) as refused:
        reading.session(conn, "abcdef")
    assert all(each in refused.value.message for each in ids)
    assert str(reading.session(conn, ids[1]).id) == ids[1]


@pytest.mark.parametrize("named", ["nihgt", "abcde", "", "a\0b", "%", "______"])
def test_a_session_that_is_not_there_is_an_error(conn, named):
    add_session(conn, "night", id="abcdef12-0000-0000-0000-000000000000")
    with pytest.raises(NotFoundError) as missing:
        reading.session(conn, named)
    if named == "nihgt":
        assert missing.value.hint == "did you mean 'night'?"


def test_sessions_come_newest_first_through_every_filter(conn):
    def later(hours):
        return BEGAN + timedelta(hours=hours)

    add_session(conn, "a_1", started_at=later(1), group_name="g", tags={"seed": 1, "long": "yes"})
    add_session(conn, "a%2", started_at=later(2), model_version="2.0.0", heartbeat_at=later(2))
    add_session(
        conn, "b", started_at=later(3), model_name="other", status="completed",
        finished_at=later(4), tags={"long": "no"},
    )  # fmt: skip

    def names(**filters):
        return [each.name for each in reading.sessions(conn, **filters)]

    assert names() == ["b", "a%2", "a_1"]
    assert names(limit=2) == ["b", "a%2"]
    assert names(model="story") == ["a%2", "a_1"]
    assert names(model="story@2.0.0") == ["a%2"]
    assert names(group="g") == ["a_1"]
    assert names(tag="long") == ["b", "a_1"]
    assert names(tag="long=yes") == ["a_1"]
    assert names(tag="seed=1") == ["a_1"]
    assert names(status="completed") == ["b"]
    assert names(status="crashed") == ["a%2"]
    assert names(status="running") == ["a_1"]
    assert names(name="a*") == ["a%2", "a_1"]
    assert names(name="a_?") == ["a_1"]
    assert names(name="a%?") == ["a%2"]


def test_the_forks_of_a_session_are_told(conn):
    parent = add_session(conn)
    assert reading.forks(conn, parent) == []
    forked = [
        add_session(conn, parent_id=parent, started_at=BEGAN + timedelta(hours=i)) for i in range(2)
    ]
    assert [each.id for each in reading.forks(conn, parent)] == forked


def test_the_last_loss_of_a_session_is_found_without_reading_its_points(conn):
    session = add_session(conn)
    add_points(conn, session, {i: float(i) for i in range(5000)})
    explained = conn.execute(
        "EXPLAIN (ANALYZE, FORMAT JSON) SELECT last_loss FROM v_training_progress"
        " WHERE session_id = %s",
        [session],
    ).fetchone()
    read = [
        node["Actual Rows"] * node["Actual Loops"]
        for node in nodes(explained[0][0]["Plan"])
        if node.get("Relation Name") == "training_metrics"
    ]
    assert read == [1]


def nodes(plan):
    yield plan
    for each in plan.get("Plans", ()):
        yield from nodes(each)


def test_the_mean_of_the_least_numbers_there_are_is_no_error(conn):
    session = add_session(conn)
    add_points(conn, session, {0: 0.0, 1: 5e-324})
    found = reading.envelope(conn, session, "loss", buckets=1)
    assert (found.lows[0], found.highs[0], found.means[0]) == (0, 5e-324, 0)
