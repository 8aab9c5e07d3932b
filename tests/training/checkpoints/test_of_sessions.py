"""Sessions and their checkpoints: saved on the way, gone on from, never half there."""

from __future__ import annotations

import logging
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import arc_halo
from arc_halo.errors import (
    CheckpointError,
    ConnectionFailedError,
    DatabaseError,
    InvalidInputError,
    NotFoundError,
)
from arc_halo.weights.collecting import collect

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def halo(tmp_path: Path, database: str) -> Iterator[arc_halo.Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        yield opened


@pytest.fixture
def away(database):
    """A time in which the database takes no connections."""

    @contextmanager
    def away():
        with psycopg.connect(database, autocommit=True) as conn:
            name = "datname = current_database()"
            conn.execute(f"UPDATE pg_database SET datallowconn = false WHERE {name}")
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE {name} AND pid <> pg_backend_pid()"
            )
            try:
                yield
            finally:
                conn.execute(f"UPDATE pg_database SET datallowconn = true WHERE {name}")

    return away


def test_a_session_goes_on_where_its_checkpoint_was(halo, sql):
    with halo.training.session("story@1", name="a") as run:
        assert not run.has_checkpoint
        for step in range(5):
            run.log({"loss": 5 - step}, step=step)
        run.checkpoint(model={"w": np.arange(3)}, optimizer={"t": 5}, epoch=0.5)
        run.log({"loss": 0.5})
        run.pause()
    with halo.training.session("story@1", name="a", resume="must") as run:
        assert (run.has_checkpoint, run.step) == (True, 5)
        model, state = {"w": np.zeros(3, int)}, {}
        done = run.restore(model=model, optimizer=state)
        assert (model["w"].tolist(), state, run.step) == ([0, 1, 2], {"t": 5}, 4)
        assert (done.checkpoint.step, done.checkpoint.epoch) == (4, 0.5)
        run.log({"loss": 0.25})
    assert sql("SELECT step, value FROM training_metrics WHERE step > 3 ORDER BY step") == [
        (4, 1.0),
        (5, 0.25),
    ]


@pytest.mark.parametrize("async_", [False, True])
def test_what_was_logged_before_a_checkpoint_is_there_before_it(halo, sql, async_):
    with halo.training.session("story@1", flush_seconds=60) as run:
        for step in range(100):
            run.log({"loss": step})
        saved = run.checkpoint(model={"w": np.zeros(3)}, async_=async_)
        if async_:
            saved.result()
        assert sql("SELECT max(step) FROM training_metrics") == [(99,)]


def test_a_session_keeps_what_its_retention_says(halo):
    keeping = {"retention": {"keep_last": 1}, "best_metric": "loss"}
    with halo.training.session("story@1", **keeping) as run:
        for step, loss in enumerate([3, 1, 2, 4]):
            run.checkpoint(step=step, model={"w": np.full(3, step)}, metrics={"loss": loss})
        kept = [(point.step, point.kept_because) for point in run.checkpoints.list()]
        assert kept == [(1, "best"), (3, "latest, keep_last")]
        model = {"w": np.zeros(3, int)}
        run.restore("best", model=model)
        assert (model["w"][0], run.step) == (1, 1)
        assert [p.step for p in run.checkpoints.prune({"keep_best": 1}, dry_run=True).gone] == []


def test_the_best_is_told_by_what_was_logged_at_the_step_of_the_checkpoint(halo):
    with halo.training.session("story@1", best_metric="eval/loss", best_mode="max") as run:
        for step, loss in enumerate([1, 3, None, 2]):
            run.log({"loss": 10 * step}, step=step)
            if loss is not None:
                run.log({"loss": loss}, step=step, scope="eval")
            run.checkpoint(model={"w": np.full(3, step)}, async_=step == 3)
        run.checkpoint(step=9, model={"w": np.zeros(3)}, metrics={"eval/loss": 2.5})
        told = [(point.step, point.metrics, point.is_best) for point in run.checkpoints.list()]
    assert told == [
        (0, {"eval/loss": 1}, False),
        (1, {"eval/loss": 3}, True),
        (2, {}, False),
        (3, {"eval/loss": 2}, False),
        (9, {"eval/loss": 2.5}, False),
    ]


def test_what_is_logged_after_a_checkpoint_tells_the_best_too(halo, sql, caplog):
    keeping = {"retention": {"keep_best": 1}, "best_metric": "eval/acc", "best_mode": "max"}
    with halo.training.session("story@1", **keeping) as run:
        for step, acc in enumerate([0.5, 0.9, 0.7, math.nan, 0.8]):
            run.checkpoint(step=step, model={"w": np.full(3, step)})
            run.log({"acc": acc}, step=step, scope="eval")
        assert [point.step for point in run.checkpoints.list()] == [1, 4]
        assert run.checkpoints.find("best").step == 1
        run.checkpoint(step=5, model={"w": np.full(3, 5)})
        run.log({"acc": 0.95}, step=5, scope="eval")
    assert sql("SELECT step, metrics, is_best FROM model_checkpoints ORDER BY step") == [
        (1, {"eval/acc": 0.9}, False),
        (5, {"eval/acc": 0.95}, True),
    ]
    assert "keep_best" not in caplog.text


def test_what_is_not_flushed_yet_tells_what_is_pruned(halo):
    with halo.training.session("story@1", best_metric="loss", flush_seconds=60) as run:
        for step, loss in enumerate([3, 1, 2]):
            run.checkpoint(step=step, model={"w": np.full(3, step)})
            run.log({"loss": loss}, step=step)
        run.checkpoint(step=3, model={"w": np.full(3, 3)})
        assert [p.step for p in run.checkpoints.prune({"keep_best": 1}).gone] == [0, 2]


def test_a_metric_named_with_a_checkpoint_may_be_logged_too(halo):
    with halo.training.session("story@1") as run:
        for step, acc in enumerate([1, 3, 2]):
            run.log({"acc": acc}, step=step)
            run.checkpoint(model={"w": np.full(3, step)}, best_metric="acc", best_mode="max")
        assert run.checkpoints.find("best").step == 1


def test_a_best_metric_that_nothing_has_is_told_once(halo, caplog):
    keeping = {"retention": {"keep_best": 2}, "best_metric": "eval/accc"}
    with halo.training.session("story@1", **keeping) as run:
        for step in range(4):
            run.checkpoint(step=step, model={"w": np.full(3, step)})
            run.log({"acc": step}, step=step, scope="eval")
    assert caplog.text.count("no checkpoint has a value of 'eval/accc'") == 1


@pytest.mark.parametrize("async_", [False, True])
def test_a_database_that_is_away_is_only_warned_of_where_that_is_wanted(
    halo, sql, away, caplog, async_
):
    model = {"w": np.zeros(3)}
    with halo.training.session("story@1") as run:
        run.checkpoint(step=1, model=model, on_failure="warn")
        run.checkpoints._store.pool.timeout = 1
        with away():
            run.log({"loss": 1}, step=2)
            saved = run.checkpoint(step=2, model=model, async_=async_, on_failure="warn")
            if async_:
                assert saved.wait()
                with pytest.raises(ConnectionFailedError):
                    saved.result()
            else:
                assert saved is None
            assert caplog.text.count("the checkpoint of step 2 was not saved") == 1
            with pytest.raises(CheckpointError):
                run.checkpoint(model=model, extra=object(), on_failure="warn")
            with pytest.raises(ConnectionFailedError):
                run.checkpoint(step=3, model=model)
            with pytest.raises(InvalidInputError, match="on_failure"):
                run.checkpoint(step=3, model=model, on_failure="ignore")
        run.checkpoints._store.pool.timeout = 30
        run.checkpoint(step=4, model=model, on_failure="warn")
    assert sql("SELECT step FROM model_checkpoints ORDER BY step") == [(1,), (4,)]
    assert sql("SELECT step FROM training_metrics") == [(2,)]


def test_a_session_ends_where_its_last_checkpoint_was_only_to_be_warned_of(halo, sql, away):
    with halo.training.session("story@1") as run:
        run.checkpoint(step=1, model={"w": np.zeros(3)})
        run.checkpoints._store.pool.timeout = 1
        with away():
            run.checkpoint(step=2, model={"w": np.zeros(3)}, async_=True, on_failure="warn")
            run.finish()
    halo.training.sync()
    assert sql("SELECT status FROM training_sessions") == [("completed",)]


def test_a_policy_of_no_sense_begins_no_session(halo, sql):
    for given in (
        {"retention": {"keep_first": 1}},
        {"retention": {"keep_last": -1}},
        {"retention": {"keep_last": 0}},
        {"retention": {"keep_best": 1}},
        {"best_metric": 5},
        {"best_mode": "least"},
    ):
        with pytest.raises(InvalidInputError):
            halo.training.session("story@1", **given)
    assert sql("SELECT count(*) FROM training_sessions") == [(0,)]


def test_the_best_are_not_kept_where_nothing_says_what_is_best(halo):
    with halo.training.session("story@1") as run:
        run.checkpoint(step=1, model={"w": np.zeros(3)}, metrics={"loss": 1})
        with pytest.raises(InvalidInputError, match="nothing says which metric"):
            run.checkpoints.prune({"keep_best": 1})


def test_a_fork_begins_at_what_it_came_from(halo):
    with halo.training.session("story@1", name="a") as run:
        for step in (10, 20):
            run.log({"loss": 1}, step=step)
            run.checkpoint(model={"w": np.full(3, step)})
    with halo.training.session("story@2", fork_from="a", at_step=15) as run:
        model = {"w": np.zeros(3, int)}
        assert run.has_checkpoint
        run.restore(model=model)
        assert (model["w"][0], run.step) == (10, 10)
        with pytest.raises(NotFoundError):
            run.restore(20, model=model)


def test_another_sessions_checkpoint_is_restored_by_its_id_and_moves_no_step(halo):
    with halo.training.session("story@1", name="a") as run:
        point = run.checkpoint(step=7, model={"w": np.full(3, 7)}).checkpoint
    with halo.training.session("tale@1") as run:
        model = {"w": np.zeros(3, int)}
        run.restore(point.id, model=model)
        assert (model["w"][0], run.step, run.has_checkpoint) == (7, 0, False)


def test_a_session_that_is_over_saves_nothing(halo):
    with halo.training.session("story@1") as run:
        pass
    with pytest.raises(CheckpointError, match="is over"):
        run.checkpoint(model={"w": np.zeros(3)})


def test_a_checkpoint_that_was_not_saved_is_told_at_the_end(halo, sql, caplog):
    sql("ALTER TABLE model_checkpoints ADD CHECK (step <> 1) NOT VALID")

    def train(model, error=None):
        with halo.training.session(model) as run:
            run.checkpoint(step=1, model={"w": np.zeros(3)}, async_=True)
            if error is not None:
                raise error

    with pytest.raises(DatabaseError, match="check"):
        train("story@1")
    with caplog.at_level(logging.ERROR), pytest.raises(ZeroDivisionError):
        train("story@2", ZeroDivisionError())
    assert "the last checkpoint was not saved" in caplog.text
    assert sql("SELECT model_version, status FROM training_sessions ORDER BY 1") == [
        ("1", "completed"),
        ("2", "failed"),
    ]


SAVES = """
import os, sys
import numpy as np
import arc_halo
url, directory, function = sys.argv[1:]
from arc_halo.training.checkpoints import saving
from arc_halo.store import checkpoints
whole = getattr(eval(function.split(".")[0]), function.split(".")[1])
def killed(*given, **named):
    if run.armed:
        if function.endswith("insert"):
            whole(*given, **named)
        os.kill(os.getpid(), 9)
    return whole(*given, **named)
setattr(eval(function.split(".")[0]), function.split(".")[1], killed)
with arc_halo.connect(url, project=directory) as halo:
    run = halo.training.session("story@1", name="a")
    run.armed = False
    model = {"w": np.arange(300_000.0)}
    run.checkpoint(step=1, model=model, optimizer={"m": model["w"] * 2})
    run.armed = True
    model["w"] += 1e-3
    run.checkpoint(step=2, model=model, optimizer={"m": model["w"] * 2})
"""


@pytest.mark.parametrize("moment", ["saving._build", "saving._enter", "checkpoints.insert"])
def test_a_killed_save_leaves_nothing_that_can_be_seen(halo, store, sql, tmp_path, moment):
    place = str(halo.project.directory)
    program = [sys.executable, "-c", SAVES, halo.project.url, place, moment]
    ended = subprocess.run(program, timeout=120, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    with halo.training.session("story@1", name="a", resume="must") as run:
        assert [point.step for point in run.checkpoints.list()] == [1]
        model, state = {"w": np.zeros(300_000)}, {}
        run.restore(model=model, optimizer=state)
        assert (model["w"] == np.arange(300_000.0)).all()
        assert (state["m"] == model["w"] * 2).all()
    collect(store, grace=timedelta(0))
    assert sql(
        "SELECT count(*) FROM weight_sets WHERE NOT EXISTS (SELECT FROM model_checkpoints AS c"
        " WHERE weight_sets.id IN (c.weight_set_id, c.state_set_id))"
    ) == [(0,)]


NEVER_CLOSED = """
import sys
import numpy as np
import arc_halo
halo = arc_halo.connect(sys.argv[1], project=sys.argv[2])
run = halo.training.session("story@1")
model = {str(n): np.random.normal(size=300_000) for n in range(8)}
run.checkpoint(step=3, model=model, async_=True)
"""


def test_a_program_that_ends_waits_for_what_it_saves(halo, sql):
    place = str(halo.project.directory)
    program = [sys.executable, "-c", NEVER_CLOSED, halo.project.url, place]
    ended = subprocess.run(program, timeout=120, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sql("SELECT step FROM model_checkpoints") == [(3,)]
