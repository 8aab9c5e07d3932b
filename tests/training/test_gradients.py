"""Gradients of sessions: norms as series and with the weights, and the gradients themselves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import arc_halo
from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.training.gradients import read, total_norm

Halo = arc_halo.Halo
Sql = Callable[..., list[tuple[Any, ...]]]
WEIGHTS = """
SELECT tensor_name, requires_grad, gradient_norm FROM model_weights ORDER BY 1
"""
SERIES = """
SELECT metric_key, scope, step, value FROM training_series JOIN training_metrics ON series_id = id
ORDER BY 1, 2, 3
"""
GRADIENTS = """
SELECT part.tensor_name, gradient.dtype, gradient.shape
FROM model_weights AS part JOIN tensor_metadata AS gradient ON gradient.id = gradient_tensor_id
ORDER BY 1
"""
ONES = np.ones((2, 2), dtype=np.float32)


@pytest.fixture
def halo(tmp_path: Path, database: str) -> Iterator[Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        model = opened.models.create_model(
            model_name="story", version="1", model_type="other", architecture_config={}
        )
        opened.tensors.write(model, {name: np.zeros((2, 2), dtype="f4") for name in "abc"})
        yield opened


def test_norms_are_series_and_stand_with_the_weights_when_the_session_ends(
    halo: Halo, sql: Sql
) -> None:
    with halo.training.session("story@1") as run:
        run.record_gradients({"a": ONES, "b": 3 * ONES, "c": None}, step=4, epoch=0.5)
        assert sql(WEIGHTS) == [(name, True, None) for name in "abc"]
    assert sql(WEIGHTS) == [("a", True, 2.0), ("b", True, 6.0), ("c", False, None)]
    assert sql(SERIES) == [
        ("a", "gradients", 4, 2.0),
        ("b", "gradients", 4, 6.0),
        ("gradient_norm", "train", 4, math.sqrt(40)),
    ]


def test_what_was_last_of_each_weight_stands_there_from_the_next_flush_on(
    halo: Halo, sql: Sql
) -> None:
    with halo.training.session("story@1") as run:
        run.log({"loss": 1.0}, step=7)
        run.record_gradients({"a": ONES, "b": ONES})
        run.record_gradients({"a": 2 * ONES}, step=8)
        assert run.flush()
        assert sql(WEIGHTS) == [("a", True, 4.0), ("b", True, 2.0), ("c", True, None)]
        assert [row[2] for row in sql(SERIES) if row[0] == "a"] == [7, 8]
        run.record_gradients({"a": None}, step=9)
    assert sql(WEIGHTS)[0] == ("a", False, None)


def test_norms_that_are_no_numbers_are_kept(halo: Halo, sql: Sql) -> None:
    with halo.training.session("story@1") as run:
        run.record_gradients({"a": np.nan * ONES, "b": np.inf * ONES}, step=0)
    found = {name: norm for name, _, norm in sql(WEIGHTS)}
    assert math.isnan(found["a"])
    assert found["b"] == math.inf
    (total,) = [value for key, _, _, value in sql(SERIES) if key == "gradient_norm"]
    assert math.isnan(total)


def test_gradients_themselves_are_stored_with_the_weights(
    halo: Halo, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    halves = (0.5 * ONES).astype(ml_dtypes.bfloat16)
    with halo.training.session("story@1") as run:
        run.record_gradients({"a": ONES, "b": halves, "z": ONES}, step=1, tensors=True)
        assert sql(GRADIENTS) == [("a", "F32", [2, 2]), ("b", "BF16", [2, 2])]
        assert sql(WEIGHTS)[1] == ("b", True, 1.0)
        (first,) = sql("SELECT gradient_tensor_id FROM model_weights WHERE tensor_name = 'a'")
        run.record_gradients({"a": 5 * ONES, "b": None}, step=2, tensors=True)
    assert sql(GRADIENTS) == [("a", "F32", [2, 2])]
    assert sql("SELECT gradient_tensor_id FROM model_weights WHERE tensor_name = 'a'") != [first]
    assert "1 gradients are of no weight of story@1: not kept" in caplog.messages


def test_gradients_are_no_drift_and_stay_when_weights_are_replaced(halo: Halo, sql: Sql) -> None:
    with halo.training.session("story@1") as run:
        run.record_gradients({"a": ONES}, step=1, tensors=True)
    halo.tensors.write("story@1", dict.fromkeys("ab", ONES))
    assert sql(WEIGHTS) == [("a", True, 2.0), ("b", True, None)]
    assert sql(GRADIENTS) == [("a", "F32", [2, 2])]


def test_a_model_without_such_weights_has_the_series_alone(halo: Halo, sql: Sql) -> None:
    with halo.training.session("other@1") as run:
        run.record_gradients({"a": ONES}, step=0)
        assert run.flush()
        with pytest.raises(NotFoundError, match="none of the gradients is of a weight of other@1"):
            run.record_gradients({"a": ONES}, step=1, tensors=True)
    assert [row[:3] for row in sql(SERIES)] == [
        (key, scope, step)
        for key, scope in (("a", "gradients"), ("gradient_norm", "train"))
        for step in (0, 1)
    ]
    assert [norm for _, _, norm in sql(WEIGHTS)] == [None, None, None]


def test_a_session_that_lost_its_lease_records_nothing_with_the_weights(
    halo: Halo, sql: Sql
) -> None:
    with halo.training.session("story@1") as run:
        run.record_gradients({"a": ONES}, step=0)
        sql("UPDATE training_sessions SET lease = gen_random_uuid()")
    assert sql(WEIGHTS)[0] == ("a", True, None)


def test_after_the_end_nothing_is_recorded(
    halo: Halo, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    with halo.training.session("story@1") as run:
        pass
    with caplog.at_level(logging.WARNING):
        run.record_gradients({"a": ONES}, tensors=True)
    assert "gradients came after the end of the session: not recorded" in caplog.messages
    assert sql(SERIES) == []


def test_gradients_that_are_not_there_yet_are_told_once(
    halo: Halo, caplog: pytest.LogCaptureFixture
) -> None:
    with halo.training.session("story@1.0.0") as run:
        for _ in range(2):
            run.record_gradients({"a": None})
    assert caplog.text.count("no gradients to record: do it after `backward`") == 1


@pytest.mark.parametrize("step", [-1, 1.5, "1", 2**63])
def test_a_step_that_is_none_is_refused(halo: Halo, step: Any) -> None:
    with halo.training.session("story@1") as run, pytest.raises(InvalidInputError, match="step="):
        run.record_gradients({"a": ONES}, step=step)


@pytest.mark.parametrize("source", [3, [ONES], {"a": "text"}, {"a": [[1], [2, 3]]}])
def test_what_has_no_gradients_is_refused(source: Any) -> None:
    with pytest.raises(InvalidInputError, match="gradient"):
        read(source)


@given(
    arrays.arrays(
        st.sampled_from([np.float16, np.float32, np.int8]), arrays.array_shapes(max_side=5)
    )
)
def test_a_norm_is_the_root_of_the_sum_of_squares(array: Any) -> None:
    (found,) = read({"a": array})
    expected = math.sqrt(sum(float(value) ** 2 for value in array.ravel()))
    assert found.norm == pytest.approx(expected, nan_ok=True)
    assert total_norm([found]) == pytest.approx(found.norm, nan_ok=True)


def test_nothing_has_no_norm() -> None:
    assert total_norm(read({"a": None})) is None
    assert total_norm(read({})) is None
    assert total_norm(read({"a": np.zeros(0)})) == 0
