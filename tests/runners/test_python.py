"""The runner `python`: functions of plugins, and what they may return."""

from __future__ import annotations

import json

import numpy as np
import pytest

from arc_halo import Outputs, Predictor
from arc_halo.errors import MemberError, OutputError
from arc_halo.runners.python import open_python


@pytest.fixture
def opened(make_context):
    """Opens the runner on a function."""

    def opened(predict, load=None, **params):
        found = Predictor(name="mine", version=1, summary="mine", predict=predict, load=load)
        return open_python(
            make_context(predictors={"mine": found}), **{"predictor": "mine", **params}
        )

    return opened


def answer(opened, value, **params):
    with opened(lambda inputs: value, **params) as running:
        return running.answer(["a", "b"])


def test_outputs_go_through_as_they_are(opened):
    outputs = Outputs(texts=("x", "y"))
    assert answer(opened, outputs) is outputs


def test_an_array_of_two_dimensions_holds_probabilities(opened):
    outputs = answer(opened, np.array([[0.25, 0.75], [1, 0]], np.float32), classes=["no", "yes"])
    assert outputs.scores.dtype == np.float64
    assert outputs.classes == ("no", "yes")
    outputs.check(2)


def test_probabilities_that_are_none_are_noticed(opened):
    with pytest.raises(OutputError, match="do not add up to 1"):
        answer(opened, np.ones((2, 2))).check(2)


def test_classes_are_those_of_the_function_where_it_says_them(opened):
    scores = np.full((2, 2), 0.5)
    assert answer(opened, Outputs(scores=scores), classes=[0, 1]).classes == (0, 1)
    assert answer(opened, Outputs(scores=scores, classes=(8, 9)), classes=[0, 1]).classes == (8, 9)


def test_texts_are_texts_and_with_classes_labels(opened):
    assert answer(opened, ["x", "y"]).texts == ("x", "y")
    assert answer(opened, ["x", "y"], classes=["x", "y"]).labels == ("x", "y")


@pytest.mark.parametrize("value", [np.array([3, 4]), [3, 4], [np.int64(3), np.int64(4)]])
def test_labels_are_json(opened, value):
    labels = answer(opened, value).labels
    assert json.dumps(labels) == "[3, 4]"


@pytest.mark.parametrize("value", [None, {"a": 1}, "text", np.zeros((2, 2, 2)), [None, None]])
def test_anything_else_is_refused(opened, value):
    with pytest.raises(MemberError, match="it gave"):
        answer(opened, value)


def test_what_load_returns_is_the_first_argument_and_made_once(opened):
    loaded = []

    def load(context):
        loaded.append(context.model)
        return "prefix "

    with opened(lambda prefix, inputs: [prefix + each for each in inputs], load) as running:
        assert running.answer(["a"]).texts == ("prefix a",)
        assert running.answer(["b"]).texts == ("prefix b",)
    assert loaded == ["poet@1"]


def test_an_unknown_name_is_told_with_what_was_meant(opened):
    with (
        pytest.raises(MemberError, match="the predictor 'mein'") as told,
        opened(lambda inputs: inputs, predictor="mein"),
    ):
        pass
    assert told.value.hint == "did you mean 'mine'?"
    assert told.value.error_code == "AH032"


def test_where_none_is_loaded_it_says_so(make_context):
    with (
        pytest.raises(MemberError) as told,
        open_python(make_context(), predictor="mine"),
    ):
        pass
    assert "none are loaded" in told.value.hint
