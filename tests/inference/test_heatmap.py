"""Patterns as cells: shades, what shares a cell, and differences."""

from __future__ import annotations

import numpy as np
import pytest

from arc_halo.inference.heatmap import COLOURS, LESS_TO_MORE, columns_of, heatmap, of_one_scale


def cells(rows, **settings):
    given = {"is_causal": False, "most_cells": 100} | settings
    array = np.array(rows, np.float32)
    return heatmap(array, [str(each) for each in range(array.shape[1])], **given)


def test_shades_go_from_nothing_to_the_most():
    found = cells([[0.0, 0.25, 1.0, np.nan]])
    assert [found.step(0, key) for key in range(4)] == [0, 3, len(COLOURS) - 1, None]
    assert found.range == "0 to 1"


def test_shades_of_differences_have_nothing_in_the_middle():
    found = cells([[-0.5, -0.01, 0.0, 0.01, 0.5, np.inf]], is_difference=True)
    last = len(LESS_TO_MORE) - 1
    assert [found.step(0, key) for key in range(6)] == [0, 3, last // 2, 3, last, None]
    assert found.range == "-0.5 to 0.5"


def test_what_shares_a_cell_is_told_by_what_is_furthest_from_nothing():
    rows = [[0.1, 0.2, 0.3], [-0.9, 0.0, 0.4], [0.0, 0.5, -0.6]]
    found = cells(rows, most_cells=2, is_difference=True)
    np.testing.assert_allclose(found.values, [[-0.9, 0.4], [0.5, -0.6]])
    assert found.queries == ("0-1", "2-2")


def test_what_is_not_seen_has_no_part_in_a_cell():
    found = cells(np.tri(4), is_causal=True, most_cells=2)
    assert np.array_equal(found.values, [[1, np.nan], [1, 1]], equal_nan=True)
    assert cells([[np.nan, np.nan]], most_cells=1).step(0, 0) is None


def test_several_have_one_scale():
    both = of_one_scale([cells([[0.25]]), cells([[1.0]])])
    assert [each.most for each in both] == [1.0, 1.0]
    assert both[0].step(0, 0) == 3


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (12, 4), (32, 6)])
def test_several_stand_in_a_square(count, columns):
    assert columns_of(count) == columns
