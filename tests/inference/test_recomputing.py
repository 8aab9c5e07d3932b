"""Stored keys and values beside those that are computed again."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from arc_halo.errors import InvalidInputError
from arc_halo.inference.blocks import LayerKV
from arc_halo.inference.kv_cache import Prefix
from arc_halo.inference.layouts import KVLayout
from arc_halo.inference.recomputing import layer_errors, recompute
from tests.inference.conftest import FULL, SLIDING, MakeCache, computed, shortened, tokens_of


@pytest.mark.parametrize("layout", [FULL, SLIDING], ids=["full", "sliding"])
def test_samples_are_prompts_with_what_is_stored_of_them(
    make_cache: MakeCache, layout: KVLayout
) -> None:
    cache = make_cache(layout)
    prompts = [tokens_of(1, 64), tokens_of(2, 40)]
    for tokens in prompts:
        cache.store(tokens, computed(layout, tokens, cut=False))
    other = make_cache(layout, adapter=b"another")
    other.store(tokens_of(3, 64), computed(layout, tokens_of(3, 64), cut=False))
    assert cache.flush(30)
    assert other.flush(30)
    found = {tuple(tokens): prefix.length for tokens, prefix in cache.sample(100)}
    expected = [(prompts[0][:n], n) for n in (16, 32, 48, 64)]
    expected += [(prompts[1][:n], n) for n in (16, 32)]
    assert found == {tuple(tokens): count for tokens, count in expected}
    result = recompute(
        cache.sample(100), lambda tokens: computed(layout, tokens, cut=False), tolerance=0
    )
    assert (result.prompts, result.tokens, result.error, result.wrong) == (6, 208, 0, ())


@pytest.mark.parametrize("tolerance", [None, "0.1", -1, math.nan])
def test_what_is_no_tolerance_is_refused(tolerance: Any) -> None:
    with pytest.raises(InvalidInputError, match="tolerance cannot be"):
        recompute([], lambda known: computed(FULL, known), tolerance)


def test_one_wrong_layer_is_named() -> None:
    tokens = tokens_of(1, 64)
    layers = computed(FULL, tokens)
    odd = [*layers[:2], replace(layers[2], values=-layers[2].values)]
    result = recompute(
        [(tokens, Prefix(length=64, layers=tuple(odd))), ([1], Prefix(length=0))],
        lambda known: computed(FULL, known),
        tolerance=0.5,
    )
    (wrong,) = result.wrong
    assert (result.prompts, wrong.tokens, wrong.layer) == (1, tuple(tokens), 2)
    assert wrong.error == pytest.approx(2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_wrong_unless_both_are(value: float) -> None:
    array = np.ones((1, 4, 2), np.float32)
    odd = array.copy()
    odd[0, 2, 1] = value
    plain, other = (LayerKV(keys=each, values=each) for each in (array, odd))
    assert layer_errors([other], [plain]) == layer_errors([plain], [other]) == [math.inf]
    assert layer_errors([other], [other]) == [0]


def test_a_window_is_compared_where_it_is() -> None:
    tokens = tokens_of(1, 64)
    whole = computed(SLIDING, tokens, cut=False)
    assert layer_errors(shortened(SLIDING, whole, 64), whole) == [0, 0]
