"""`halo.training` on sessions that are over: their checkpoints read, notes added, deleted."""

from __future__ import annotations

import random

import numpy as np
import pytest

import arc_halo
from arc_halo.errors import NotFoundError


@pytest.fixture
def halo(tmp_path, database):
    with arc_halo.connect(database, project=tmp_path) as opened:
        yield opened


@pytest.fixture
def completed(halo):
    """A completed session with three checkpoints, the second of them the best."""
    with halo.training.session("story@1", name="tune", best_metric="loss") as run:
        for step, loss in ((10, 2.0), (20, 1.0), (30, 3.0)):
            run.log({"loss": loss}, step=step)
            run.checkpoint(
                model={"w": np.full(4, step, np.float32)},
                optimizer={"m": np.full(4, loss)},
                metrics={"loss": loss},
                rng=step != 20,
            )
    return halo.training.get("tune")


def test_a_checkpoint_of_a_completed_session_is_restored(completed):
    model, optimizer = {"w": np.empty(4, np.float32)}, {"m": np.empty(4)}
    restored = completed.checkpoints.restore("best", model=model, optimizer=optimizer)
    assert (restored.checkpoint.step, restored.restored) == (20, ("model", "optimizer"))
    assert (model["w"].tolist(), optimizer["m"].tolist()) == ([20] * 4, [1] * 4)


def test_generators_are_restored_from_a_completed_session_only_if_asked_for(completed):
    before, model = random.getstate(), {"w": np.empty(4, np.float32)}
    random.random()
    drawn = random.getstate()
    completed.checkpoints.restore(model=model)
    assert random.getstate() == drawn
    completed.checkpoints.restore(model=model, rng=True)
    assert random.getstate() == before


def test_checkpoints_of_a_completed_session_are_listed_found_and_read(completed):
    checkpoints = completed.checkpoints
    assert [each.step for each in checkpoints.list()] == [10, 20, 30]
    assert checkpoints.find().step == 30
    assert checkpoints.find(10).step == 10
    contents = checkpoints.read("best")
    assert contents.weights["w"].tolist() == [20] * 4
    assert contents.state("optimizer")["m"].tolist() == [1] * 4
    with pytest.raises(NotFoundError, match="no checkpoint 11"):
        checkpoints.restore(11)


def test_nothing_is_saved_in_a_session_that_is_only_read(completed):
    assert not hasattr(completed.checkpoints, "save")
    assert not hasattr(completed.checkpoints, "prune")
