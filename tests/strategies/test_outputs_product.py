"""`product_of_experts` and `contrastive`: logarithms against formulas in plain probabilities."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax

from arc_halo.errors import OutputError
from arc_halo.outputs import Outputs
from tests.strategies.answering import combine, logits, shares

WEIGHTS = (0.5, 2.0, 1.25)
NORMALIZE = {"normalize": True}


def product(members, weights):
    powers = np.prod([p.scores**w for p, w in zip(members, weights, strict=True)], axis=0)
    return powers / powers.sum(axis=1, keepdims=True)


def test_it_is_the_product_of_powers_over_its_sum():
    members = [shares(seed) for seed in range(3)]
    fused = combine("product_of_experts", members, weights=WEIGHTS)
    np.testing.assert_allclose(fused.scores, product(members, WEIGHTS), rtol=1e-13, atol=0)
    assert (fused.meaning, fused.classes) == ("probabilities", ("w", "x", "y", "z"))


def test_normalized_weights_are_those_over_their_sum():
    members = [shares(seed) for seed in range(3)]
    fused = combine("product_of_experts", members, weights=WEIGHTS, params=NORMALIZE)
    expected = product(members, np.array(WEIGHTS) / sum(WEIGHTS))
    np.testing.assert_allclose(fused.scores, expected, rtol=1e-13, atol=0)


def test_of_logits_it_is_the_softmax_of_their_weighted_sum():
    members = [logits(seed) for seed in range(3)]
    fused = combine("product_of_experts", members, weights=WEIGHTS)
    expected = softmax(np.tensordot(WEIGHTS, [m.scores for m in members], 1), axis=1)
    np.testing.assert_allclose(fused.scores, expected, rtol=1e-12, atol=1e-300)


def test_large_logits_neither_overflow_nor_vanish():
    scores = np.array([[1e4, 1e4 - 3, -1e5], [-1e6, -1e6, -1e6 - 700]])
    one = Outputs(scores=scores, meaning="logits")
    fused = combine("product_of_experts", [one])
    np.testing.assert_allclose(fused.scores, softmax(scores, axis=1), rtol=1e-12)


def test_probabilities_and_logits_may_be_multiplied():
    one, other = shares(1), logits(2)
    fused = combine("product_of_experts", [one, other])
    as_shares = Outputs(scores=softmax(other.scores, axis=1), classes=other.classes)
    np.testing.assert_allclose(fused.scores, product([one, as_shares], (1, 1)), rtol=1e-12)


def test_equal_members_are_a_fixed_point_of_normalized_weights():
    one = shares(7)
    fused = combine("product_of_experts", [one] * 3, weights=WEIGHTS, params=NORMALIZE)
    np.testing.assert_allclose(fused.scores, one.scores, rtol=1e-13)


@given(st.floats(0.1, 100))
def test_a_factor_of_all_weights_shows_only_without_normalize(factor):
    members = [shares(1), shares(2)]
    scaled = tuple(factor * w for w in WEIGHTS[:2])
    one = combine("product_of_experts", members, weights=WEIGHTS[:2], params=NORMALIZE)
    other = combine("product_of_experts", members, weights=scaled, params=NORMALIZE)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-10)


def test_the_order_of_members_does_not_matter():
    members = [shares(seed) for seed in range(3)]
    for places in permutations(range(3)):
        fused = combine(
            "product_of_experts",
            [members[i] for i in places],
            weights=tuple(WEIGHTS[i] for i in places),
        )
        np.testing.assert_allclose(fused.scores, product(members, WEIGHTS), rtol=1e-13)


def test_a_probability_of_zero_stays_exactly_zero():
    one = Outputs(scores=np.array([[0.0, 0.4, 0.6], [0.5, 0.5, 0.0]]))
    other = Outputs(scores=np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]))
    fused = combine("product_of_experts", [one, other], weights=(0.3, 2.0))
    assert fused.scores[0].tolist() == [0.0, 1.0, 0.0]
    assert fused.scores[1, 2] == 0.0


def test_a_member_without_weight_rules_nothing_out():
    one = Outputs(scores=np.array([[0.0, 1.0]]))
    other = Outputs(scores=np.array([[0.75, 0.25]]))
    for members, weights in (([one, other], (0.0, 1.0)), ([other, one], (1.0, 0.0))):
        fused = combine("product_of_experts", members, weights=weights)
        np.testing.assert_allclose(fused.scores, other.scores, rtol=1e-15)


def test_members_that_rule_out_everything_are_an_error_that_names_the_input():
    one = Outputs(scores=np.array([[0.5, 0.5], [0.0, 1.0]]))
    other = Outputs(scores=np.array([[0.5, 0.5], [1.0, 0.0]]))
    with pytest.raises(OutputError, match="rule out every class of input 1") as caught:
        combine("product_of_experts", [one, other])
    assert caught.value.hint


@pytest.mark.parametrize("first", [0.0, 0.5])
def test_a_negative_weight_on_a_zero_is_an_error(first):
    one = Outputs(scores=np.array([[first, 1 - first]]))
    other = Outputs(scores=np.array([[0.0, 1.0]]))
    with pytest.raises(OutputError, match="negative weight"):
        combine("product_of_experts", [one, other], weights=(1.0, -1.0))


def test_other_columns_are_an_error():
    with pytest.raises(OutputError, match="other classes"):
        combine("product_of_experts", [shares(1), shares(2, columns=3)])
    vectors = Outputs(scores=np.ones((2, 2)), meaning="vectors")
    with pytest.raises(OutputError, match="vectors; probabilities or logits"):
        combine("product_of_experts", [vectors])


def contrast(expert, amateur, alpha, own, other):
    """Of one input, from probabilities, class by class."""
    return [
        own * np.log(e) - other * np.log(a) if e >= alpha * max(expert) else -np.inf
        for e, a in zip(expert, amateur, strict=True)
    ]


def test_contrastive_is_the_ratio_where_the_expert_thinks_it_plausible():
    expert, amateur = shares(1), shares(2)
    fused = combine("contrastive", [expert, amateur])
    for row, e, a in zip(fused.scores, expert.scores, amateur.scores, strict=True):
        np.testing.assert_allclose(row, contrast(e, a, 0.1, 1, 1), rtol=1e-12)
    assert (fused.meaning, fused.classes) == ("logits", ("w", "x", "y", "z"))
    assert np.isneginf(fused.scores).any()


def test_dexperts_without_a_plausible_set_is_a_difference_of_logits():
    expert, amateur = logits(1), logits(2)
    params = {"form": "dexperts", "alpha": 0, "beta": 0.7}
    fused = combine("contrastive", [expert, amateur], params=params)
    expected = softmax(1.7 * expert.scores - 0.7 * amateur.scores, axis=1)
    np.testing.assert_allclose(softmax(fused.scores, axis=1), expected, rtol=1e-10)


def test_with_a_plausible_set_it_is_that_of_o_brien_and_lewis():
    expert, amateur = shares(1), shares(2)
    params = {"form": "dexperts", "alpha": 0.3, "beta": 0.5}
    fused = combine("contrastive", [expert, amateur], params=params)
    for row, e, a in zip(fused.scores, expert.scores, amateur.scores, strict=True):
        np.testing.assert_allclose(row, contrast(e, a, 0.3, 1.5, 0.5), rtol=1e-12)


def test_the_primary_is_the_expert_wherever_it_stands_and_whatever_its_weight():
    expert, amateur = shares(1), shares(2)
    fused = combine("contrastive", [expert, amateur])
    other = combine(
        "contrastive", [amateur, expert], roles=("secondary", "primary"), weights=(2.0, 9.0)
    )
    np.testing.assert_array_equal(fused.scores, other.scores)


def test_several_amateurs_count_by_the_mean_of_their_logarithms():
    expert, *amateurs = members = [logits(seed) for seed in range(3)]
    params = {"alpha": 0}
    fused = combine("contrastive", members, weights=(1.0, 3.0, 1.0), params=params)
    one, other = (log_softmax(each.scores, axis=1) for each in amateurs)
    expected = log_softmax(expert.scores, axis=1) - (0.75 * one + 0.25 * other)
    np.testing.assert_allclose(fused.scores, expected, rtol=1e-10)


def test_what_is_exactly_as_likely_as_alpha_asks_for_is_plausible():
    expert = Outputs(scores=np.array([[0.6, 0.3, 0.1]]))
    fused = combine("contrastive", [expert, expert], params={"alpha": 0.5})
    assert fused.scores.tolist() == [[0.0, 0.0, -np.inf]]


def test_an_amateur_equal_to_the_expert_leaves_all_that_is_plausible_alike():
    expert = logits(3)
    fused = combine("contrastive", [expert, expert], params={"alpha": 0})
    np.testing.assert_allclose(fused.scores, 0, atol=1e-12)
    params = {"alpha": 0, "form": "dexperts", "beta": 2.0}
    fused = combine("contrastive", [expert, expert], params=params)
    expected = expert.scores - logsumexp(expert.scores, axis=1, keepdims=True)
    np.testing.assert_allclose(fused.scores, expected, atol=1e-10)


def test_what_the_expert_rules_out_stays_so():
    expert = Outputs(scores=np.array([[1.0, 0.0]]))
    amateur = Outputs(scores=np.array([[1.0, 0.0]]))
    fused = combine("contrastive", [expert, amateur], params={"alpha": 0})
    assert fused.scores.tolist() == [[0.0, -np.inf]]


def test_an_amateur_that_rules_out_what_is_plausible_is_an_error():
    expert = Outputs(scores=np.array([[0.5, 0.5]]))
    amateur = Outputs(scores=np.array([[1.0, 0.0]]))
    with pytest.raises(OutputError, match="no probability at all") as caught:
        combine("contrastive", [expert, amateur])
    assert caught.value.hint


@pytest.mark.parametrize("roles", [("secondary",) * 2, ("primary",) * 2])
def test_one_expert_is_needed_exactly(roles):
    with pytest.raises(OutputError, match="primary members") as caught:
        combine("contrastive", [shares(1), shares(2)], roles=roles)
    assert caught.value.hint == "give the expert alone `role: primary`"


def test_an_expert_alone_is_an_error():
    with pytest.raises(OutputError, match="amateurs"):
        combine("contrastive", [shares(1)])


def test_amateurs_without_weight_are_an_error():
    with pytest.raises(OutputError, match="amateurs add up to 0"):
        combine("contrastive", [shares(1), shares(2)], weights=(1.0, 0.0))
