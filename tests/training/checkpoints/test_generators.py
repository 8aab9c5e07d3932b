"""Random generators go on from where they were."""

from __future__ import annotations

import random

import numpy as np
import pytest

from arc_halo.errors import CheckpointError
from arc_halo.training.checkpoints import generators
from arc_halo.training.checkpoints.states import flatten, unflatten

KINDS = {
    "pcg": lambda: np.random.default_rng(1),
    "dxsm": lambda: np.random.Generator(np.random.PCG64DXSM(1)),
    "sfc": lambda: np.random.Generator(np.random.SFC64(1)),
    "philox": lambda: np.random.Generator(np.random.Philox(1)),
    "twister": lambda: np.random.Generator(np.random.MT19937(1)),
    "legacy": lambda: np.random.RandomState(1),
    "python": lambda: random.Random(1),
}


def draw(generator):
    if isinstance(generator, random.Random):
        return [generator.random() for _ in range(700)] + [generator.gauss(0, 1)]
    if isinstance(generator, np.random.RandomState):
        return [*generator.random_sample(700), generator.standard_normal()]
    return [*generator.random(700), *generator.integers(9, size=3, dtype=np.int32)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_named_generator_goes_on_from_where_it_was(kind):
    generator = KINDS[kind]()
    draw(generator)
    state = unflatten(flatten(generators.capture({kind: generator})))
    expected = draw(generator)
    fresh = KINDS[kind]()
    generators.restore(state, {kind: fresh})
    assert draw(fresh) == expected


def test_those_of_the_process_go_on_from_where_they_were():
    random.gauss(0, 1), np.random.standard_normal()
    state = unflatten(flatten(generators.capture()))
    expected = random.gauss(0, 1), random.random(), np.random.standard_normal(3).tolist()
    random.seed(7), np.random.seed(7)
    generators.restore(state)
    assert (random.gauss(0, 1), random.random(), np.random.standard_normal(3).tolist()) == expected


def test_a_generator_that_is_not_there_or_another_is_told_before_any_is_touched():
    state = generators.capture({"a": random.Random(1)})
    random.seed(5)
    before = random.getstate()
    with pytest.raises(CheckpointError, match="no generator 'b'; it has 'a'"):
        generators.restore(state, {"b": random.Random()})
    with pytest.raises(CheckpointError, match=r"'a' is a numpy\.Generator, in the checkpoint a"):
        generators.restore(state, {"a": np.random.default_rng()})
    with pytest.raises(CheckpointError, match="no state to keep"):
        generators.capture({"s": random.SystemRandom()})
    with pytest.raises(CheckpointError, match="is no random generator, but a int"):
        generators.capture({"s": 5})
    with pytest.raises(CheckpointError, match="torch is not in use here"):
        generators.restore({**state, "torch": np.zeros(3)})
    assert random.getstate() == before
