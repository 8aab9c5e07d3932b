"""`weighted_average`: the mean of scores, whatever they mean."""

from __future__ import annotations

import numpy as np
import pytest

from arc_halo.errors import OutputError
from arc_halo.outputs import Outputs
from tests.strategies.answering import combine, logits, shares

WEIGHTS = (0.5, 2.0, 1.25)


@pytest.mark.parametrize("answers", [shares, logits])
def test_it_is_the_mean_by_weights_and_keeps_its_meaning(answers):
    members = [answers(seed) for seed in range(3)]
    fused = combine("weighted_average", members, weights=WEIGHTS)
    expected = np.average([each.scores for each in members], axis=0, weights=WEIGHTS)
    np.testing.assert_allclose(fused.scores, expected, rtol=1e-12)
    assert (fused.meaning, fused.classes) == (members[0].meaning, members[0].classes)


def test_equal_members_are_a_fixed_point_and_scale_does_not_matter():
    one = shares(1)
    fused = combine("weighted_average", [one] * 3, weights=WEIGHTS)
    np.testing.assert_allclose(fused.scores, one.scores, rtol=1e-15)
    members = [shares(1), shares(2)]
    first = combine("weighted_average", members, weights=(1.0, 3.0))
    np.testing.assert_array_equal(
        first.scores, combine("weighted_average", members, weights=(2.0, 6.0)).scores
    )


def test_a_member_without_weight_may_rule_out_what_it_likes():
    one = Outputs(scores=np.array([[1.0, 2.0]]), meaning="logits")
    other = Outputs(scores=np.array([[0.0, -np.inf]]), meaning="logits")
    fused = combine("weighted_average", [one, other], weights=(2.0, 0.0))
    assert fused.scores.tolist() == [[1.0, 2.0]]
    fused = combine("weighted_average", [one, other])
    assert fused.scores.tolist() == [[0.5, -np.inf]]


def test_unlike_scores_and_weights_that_cancel_out_are_errors():
    with pytest.raises(OutputError, match="a answers with probabilities, b with logits"):
        combine("weighted_average", [shares(1), logits(1)])
    with pytest.raises(OutputError, match="add up to 0") as caught:
        combine("weighted_average", [shares(1), shares(2)], weights=(1.0, -1.0))
    assert caught.value.hint == "give one another weight"
