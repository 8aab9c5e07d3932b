"""`kill -9` at any moment of an apply: the database is as before or as after, never between."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arc_halo.project import Project
from arc_halo.store.connection import connect

ROOT = Path(__file__).parents[2]
KILLS = 20
IN_CI = range(1, KILLS, 4)
"""The trials that run always; the others with `-m campaign`."""
RESOURCES = 8


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("crash") / "demo"
    for name in ("reactors", "plugins", "examples"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns(".arc-halo"))
    shutil.copy(ROOT / "arc_halo.yaml", directory)
    return directory


@pytest.fixture(scope="module")
def undisturbed(demo, create_database):
    """Seconds that an apply takes when nobody kills it, and the roots it comes to."""
    url = create_database(None)
    started = time.monotonic()
    assert start(demo, url).wait() == 0
    return time.monotonic() - started, roots(url)


@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(trial, marks=[] if trial in IN_CI else [pytest.mark.campaign])
        for trial in range(KILLS)
    ],
)
def test_a_killed_apply_leaves_before_or_after_and_the_next_finishes(
    demo, undisturbed, empty_database, tmp_path, trial
):
    seconds, expected = undisturbed
    # Spread over the run, its first third left out: that is Python starting up.
    moment = seconds * (0.3 + 0.7 * (trial + random.random()) / KILLS)
    process = start(demo, empty_database)
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    assert visible_resources(empty_database) in (0, RESOURCES)
    assert start(demo, empty_database).wait() == 0
    assert roots(empty_database) == expected
    with Project(demo, database_url=empty_database) as project:
        assert not project.plan().has_changes
    assert export(demo, empty_database, tmp_path) == source(demo)


def start(demo: Path, url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "arc_halo", "apply", "--quiet", "--database-url", url],
        cwd=demo,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def visible_resources(url: str) -> int:
    """Managed resources, models, reactors and strategies must agree, whatever their number."""
    with connect(url) as conn:
        if conn.execute("SELECT to_regclass('managed_resources')").fetchone() == (None,):
            return 0
        counts = conn.execute(
            """SELECT (SELECT count(*) FROM managed_resources),
                      (SELECT count(*) FROM models)
                      + (SELECT count(*) FROM cognitive_fusion_reactors)
                      + (SELECT count(*) FROM fusion_strategies),
                      (SELECT count(*) FROM revision_changes)"""
        ).fetchone()
        assert counts is not None
        assert len(set(counts)) == 1, counts
        return int(counts[0])


def roots(url: str) -> dict[str, bytes]:
    with connect(url) as conn:
        rows = conn.execute(
            """SELECT model_name, root FROM models
               JOIN weight_sets ON weight_sets.id = weight_set_id"""
        )
        return {name: bytes(root) for name, root in rows}


def export(demo: Path, url: str, directory: Path) -> bytes:
    from arc_halo.cli.main import run

    arguments = ["export", "scripture", "-o", str(directory), "--project", str(demo)]
    assert run([*arguments, "--database-url", url, "--quiet"]) == 0
    return (directory / "model.safetensors").read_bytes()


def source(demo: Path) -> bytes:
    return (demo / "examples/weights/scripture/model.safetensors").read_bytes()
