"""Plots of text, dot by dot; images; and what has no place on an axis."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import InvalidInputError
from arc_halo.training import plotting, reading
from arc_halo.training.plotting import OUTSIDE, Curve

sys.path.insert(0, str(Path(__file__).parent))

from recorded import add_points, add_session

numbers = st.floats(allow_nan=False, allow_infinity=False)
bars = st.lists(st.tuples(numbers, numbers, numbers), max_size=30)


def curve(values, label="loss", *, outside=()):
    y = np.array(values, np.float64)
    return Curve(
        label=label,
        x=np.arange(len(y), dtype=np.float64),
        low=y,
        high=y,
        mean=y,
        outside=np.array(outside, np.float64),
    )


def test_a_line_goes_from_corner_to_corner():
    lines = plotting.draw([curve([0, 1, 2, 3])], width=22, height=4)
    assert lines == [
        "3 ┤              ⢀⡠⠤⠒⠉",
        "  ┤         ⢀⣀⠤⠒⠊⠁",
        "  ┤    ⢀⡠⠤⠒⠉⠁",
        "0 ┤⣀⠤⠒⠉⠁",
        "  └───────────────────",
        "   0                 3",
    ]


def test_a_spike_of_one_point_in_a_long_series_is_drawn_to_the_top(conn):
    session = add_session(conn)
    add_points(conn, session, dict.fromkeys(range(30_000), 1.0) | {12_345: 9.0})
    shape = reading.envelope(conn, session, "loss", buckets=100)
    first, *others = plotting.draw([plotting.curve("loss", shape)], width=60, height=10)
    assert first.split("┤")[0].strip() == "9"
    assert first.split("┤")[1].strip()
    column = len(first) - 1
    assert all(line[column] != " " for line in others[:9])


def test_several_curves_have_letters_and_share_places_with_a_star():
    lines = plotting.draw(
        [curve([0, 0, 0, 3], "one"), curve([3, 0, 0, 0], "other")], width=24, height=4
    )
    assert lines[0].endswith("a")
    assert lines[0].split("┤")[1].startswith("b")
    assert "*" in lines[3]
    assert lines[-2:] == ["a  one", "b  other"]


def test_values_that_have_no_place_are_marked_below_the_axis():
    lines = plotting.draw([curve([1, 1, 2], outside=[1])], width=24, height=4)
    marked = next(line for line in lines[5:] if OUTSIDE in line)
    assert 10 < marked.index(OUTSIDE) < 16
    assert lines[-1] == OUTSIDE + "  NaN or infinite"


def test_on_a_logarithm_what_is_not_positive_is_marked_and_not_drawn(conn):
    session = add_session(conn)
    add_points(conn, session, {0: -1.0, 1: 0.0, 2: 1.0, 3: 100.0, 4: math.nan})
    shape = reading.envelope(conn, session, "loss")
    found = plotting.curve("loss", shape, is_log=True)
    assert found.x.tolist() == [2, 3]
    assert found.outside.tolist() == [0, 1, 4]
    lines = plotting.draw([found], height=5, is_log=True)
    assert [lines[0].split()[0], lines[4].split()[0]] == ["100", "1"]
    assert "or not positive" in lines[-1]


def test_a_series_without_any_finite_value_is_an_empty_plot_with_its_marks(conn):
    session = add_session(conn)
    add_points(conn, session, {5: math.nan, 6: math.inf})
    found = plotting.curve("loss", reading.envelope(conn, session, "loss"))
    lines = plotting.draw([found], width=40, height=4)
    assert lines[5].count(OUTSIDE) == 2


def test_curves_go_over_epochs_and_seconds_too(conn):
    session = add_session(conn)
    add_points(conn, session, {10: 1.0, 30: 2.0})
    shape = reading.envelope(conn, session, "loss", buckets=100)
    assert plotting.curve("loss", shape, "epoch").x.tolist() == [1, 3]
    assert plotting.curve("loss", shape, "time").x.tolist() == [0, 20]


def test_a_series_without_epochs_cannot_be_drawn_over_them(conn):
    session = add_session(conn)
    add_points(conn, session, {1: 1.0}, epoch_steps=None)
    with pytest.raises(InvalidInputError):
        plotting.curve("loss", reading.envelope(conn, session, "loss"), "epoch")


@given(bars, st.integers(1, 120), st.integers(1, 30), st.booleans())
def test_any_values_are_drawn_within_the_frame(values, width, height, is_log):
    values = [sorted(abs(v) or 1.0 for v in each) if is_log else sorted(each) for each in values]
    low, mean, high = np.array(values, np.float64).reshape(-1, 3).T
    x = np.arange(len(low), dtype=np.float64)
    drawn = Curve(label="c", x=x, low=low, high=high, mean=mean, outside=x[:1])
    lines = plotting.draw([drawn], width=width, height=height, is_log=is_log)
    rows = [line for line in lines if "┤" in line]
    assert len(rows) == max(height, plotting.MIN_HEIGHT)
    assert max(map(len, rows)) <= max(width, plotting.MIN_WIDTH)
    both = plotting.draw([drawn, drawn], width=width, height=height, is_log=is_log)
    assert any("*" in row for row in both) == bool(values)


def test_more_curves_than_letters_are_refused():
    with pytest.raises(InvalidInputError):
        plotting.draw([curve([1])] * 27)


@pytest.mark.parametrize(
    ("format", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_an_image_is_the_same_bytes_each_time(format, begins):
    curves = [curve([3, 2, 1], "one", outside=[1]), curve([1, 2, 9], "other")]
    first = plotting.image(curves, format, title="loss", is_log=True)
    assert first.startswith(begins)
    assert first == plotting.image(curves, format, title="loss", is_log=True)


def test_the_greatest_numbers_there_are_have_an_image():
    most = sys.float_info.max
    assert plotting.image([curve([most, -most, 0.0])], "png")


def test_a_file_that_is_no_image_is_refused():
    with pytest.raises(InvalidInputError):
        plotting.check_image(Path("loss.gif"))
