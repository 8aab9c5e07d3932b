"""A training that is killed again and again ends as one that never was."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import arc_halo

TRAIN = """
import random, sys
import numpy as np
import arc_halo

STEPS = 60
model, optimizer, data = {"w": np.zeros(60_000)}, {"m": np.zeros(60_000)}, {"step": 0}
random.seed(1), np.random.seed(1)
with arc_halo.connect(sys.argv[1], project=sys.argv[2]) as halo:
    with halo.training.session(
        "story@1", name=sys.argv[3], resume="allow", flush_seconds=0.05,
        retention={"keep_last": 2}, best_metric="loss",
    ) as run:
        if run.has_checkpoint:
            run.restore(model=model, optimizer=optimizer, data=data)
        while data["step"] < STEPS:
            step = data["step"]
            noise = np.random.normal(size=60_000) * random.random()
            optimizer["m"] = 0.9 * optimizer["m"] + model["w"] - noise
            model["w"] -= 0.1 * optimizer["m"]
            data["step"] = step + 1
            loss = float(np.square(model["w"] - noise).mean())
            run.log({"loss": loss}, step=step)
            if step % 3 == 2:
                run.checkpoint(
                    step=step, model=model, optimizer=optimizer, data=data,
                    metrics={"loss": loss}, async_=step % 2 == 0,
                )
            print(step, flush=True)
"""
KILLS = 6


@pytest.fixture
def begin(database, tmp_path):
    def begun(name):
        given = [sys.executable, "-c", TRAIN, database, str(tmp_path), name]
        return subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begun


def finished(process):
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error


def test_a_training_killed_at_any_moment_ends_as_if_it_never_was(begin, database, tmp_path, sql):
    finished(begin("whole"))
    draw = random.Random(5)
    reached = -1
    for _ in range(KILLS):
        process = begin("killed")
        for line in process.stdout:
            if int(line) >= reached + draw.randint(2, 7):
                break
        reached = int(line)
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finished(begin("killed"))
    series = """
        SELECT step, value FROM training_metrics JOIN training_series ON id = series_id
        JOIN training_sessions AS session ON session.id = session_id
        WHERE session_name = %s ORDER BY step
    """
    assert sql(series, "killed") == sql(series, "whole")
    assert [step for step, _ in sql(series, "killed")] == list(range(60))
    with arc_halo.connect(database, project=tmp_path) as halo:
        ends = []
        for name in ("whole", "killed"):
            with halo.training.session("story@1", fork_from=name, at_step=59) as run:
                model, optimizer = {"w": np.zeros(60_000)}, {}
                run.restore(model=model, optimizer=optimizer)
                ends.append((model["w"].tobytes(), optimizer["m"].tobytes()))
        assert ends[0] == ends[1]
    kept = """
        SELECT step, kept_because, metrics FROM model_checkpoints AS point
        JOIN training_sessions AS session ON session.id = session_id
        WHERE session_name = %s ORDER BY step
    """
    assert sql(kept, "killed") == sql(kept, "whole")
