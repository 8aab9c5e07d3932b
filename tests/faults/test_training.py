"""A trainer, or the server it logs to, killed at any moment: no gap, nothing twice."""

from __future__ import annotations

import random
import signal
import struct
import subprocess
import sys
import time

import psycopg
import pytest

import arc_halo
from tests.faults.servers import wait_for

FLUSH_SECONDS = 0.25
JOURNAL = struct.Struct("<qd")
MANY = pytest.mark.campaign

# Goes back twenty steps when it is taken up, as to a checkpoint. Tells a file, which outlives it,
# each step that it has logged, and when.
TRAINER = """
import struct, sys, time, arc_halo
url, project, journal, flush, steps = sys.argv[1:]
with arc_halo.connect(url, project=project) as halo, open(journal, "ab", buffering=0) as told:
    session = halo.training.session(
        "story@1.0.0", name="killed", resume="allow", flush_seconds=float(flush)
    )
    with session as run:
        for step in range(max(0, run.step - 20), int(steps)):
            run.log({"loss": step / 3, "norm": -step}, step=step)
            told.write(struct.pack("<qd", step, time.time()))
            time.sleep(0.001)
"""


class Trainer:
    def __init__(self, url, directory, steps=10**9):
        self.url, self.directory, self.journal = url, directory, directory / "journal"
        words = (url, directory, self.journal, FLUSH_SECONDS, steps)
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        size = self._size()
        wait_for(lambda: self._size() > size)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return time.time()

    def logged(self):
        """Each step, with the last time it was logged."""
        data = self.journal.read_bytes()
        return dict(JOURNAL.iter_unpack(data[: len(data) // JOURNAL.size * JOURNAL.size]))

    def _size(self):
        return self.journal.stat().st_size if self.journal.exists() else 0


def points(url):
    with psycopg.connect(url) as conn:
        rows = conn.execute(
            "SELECT metric_key, step, value FROM training_series JOIN training_metrics"
            " ON series_id = id ORDER BY 1, 2"
        ).fetchall()
    return {key: [(s, v) for k, s, v in rows if k == key] for key in ("loss", "norm")}


def check_whole(url):
    """Both series from their beginning without a gap; the steps they come to."""
    found = points(url)
    count = len(found["loss"])
    assert found == {
        "loss": [(step, step / 3) for step in range(count)],
        "norm": [(step, -step) for step in range(count)],
    }
    return count


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=MANY)])
def test_a_killed_trainer_leaves_no_gap_and_goes_on(server, tmp_path, kills, capsys):
    server.wait()
    url = server.url(server.create_database())
    longest = 0.0
    for _ in range(kills):
        trainer = Trainer(url, tmp_path)
        time.sleep(random.uniform(0, 4 * FLUSH_SECONDS))
        killed_at = trainer.kill()
        count = check_whole(url)
        # A step that comes twice was logged first by an earlier trainer: the last one counts.
        longest = max(longest, killed_at - trainer.logged().get(count, killed_at))
    with capsys.disabled():
        told = f"{longest:.2f} s lost at most, {FLUSH_SECONDS} s between writes"
        sys.stdout.write(f"\n{kills} kills: {told}\n")
    steps = check_whole(url) + 50
    assert Trainer(url, tmp_path, steps).process.wait() == 0
    assert check_whole(url) == steps


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=MANY)])
def test_a_killed_server_costs_a_trainer_no_point(own_server, tmp_path, kills):
    own_server.start()
    url = own_server.url(own_server.create_database())
    trainer = Trainer(url, tmp_path)
    for _ in range(kills):
        time.sleep(random.uniform(0, 3 * FLUSH_SECONDS))
        own_server.kill()
        time.sleep(random.uniform(0, 4 * FLUSH_SECONDS))
        own_server.start()
    trainer.process.send_signal(signal.SIGINT)
    trainer.process.wait()
    with arc_halo.connect(url, project=tmp_path) as halo:
        halo.training.sync()
    assert check_whole(url) == max(trainer.logged()) + 1
    with psycopg.connect(url) as conn:
        found = conn.execute("SELECT status, current_step FROM training_sessions").fetchall()
    assert found == [("paused", max(trainer.logged()))]


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=MANY)])
def test_a_trainer_killed_while_the_server_is_away_leaves_no_gap(own_server, tmp_path, kills):
    own_server.start()
    url = own_server.url(own_server.create_database())
    for _ in range(kills):
        trainer = Trainer(url, tmp_path)
        time.sleep(random.uniform(0, 2 * FLUSH_SECONDS))
        own_server.kill()
        time.sleep(random.uniform(2, 6) * FLUSH_SECONDS)
        trainer.kill()
        assert list(tmp_path.glob(".arc-halo/training/*/*.points"))
        own_server.start()
        with arc_halo.connect(url, project=tmp_path) as halo:
            halo.training.sync()
        check_whole(url)
    steps = check_whole(url) + 50
    assert Trainer(url, tmp_path, steps).process.wait() == 0
    assert check_whole(url) == steps
