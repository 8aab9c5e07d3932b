"""Ctrl-C and SIGTERM in the midst of `arc-halo apply` and `arc-halo export`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.faults.proxies import Proxy
from tests.faults.scenes import Scene
from tests.faults.servers import PASSWORD, wait_for

MANIFEST = """\
version: 1
project: faults
storage:
  codec: raw
models:
  m@1.0.0:
    type: other
    architecture: config.json
    weights: {file}
"""

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
MOMENTS = {
    "a chunk": ("chunk_bodies", "NEW.raw_bytes = 37856"),
    "a tensor": ("tensor_metadata", "NEW.dtype = 'U8'"),
    "the set": ("weight_sets", "true"),
    "the models": ("models", "true"),
}

SOME_MOMENTS = [
    pytest.param(name, marks=[] if number % 2 == 0 else [pytest.mark.campaign])
    for number, name in enumerate(MOMENTS)
]
"""Every other one always, the others with `-m campaign`."""

every_signal = pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)


@pytest.fixture
def project(tmp_path, scene):
    directory = tmp_path / "project"
    directory.mkdir()
    shutil.copy(scene.file, directory / "m.safetensors")
    (directory / "config.json").write_text("{}")
    (directory / "arc_halo.yaml").write_text(MANIFEST.format(file="m.safetensors"))
    return directory


@pytest.fixture
def start(project):
    """Starts the program in the project's directory; killed at the end."""
    started = []

    def start(*arguments, url):
        environ = {**os.environ, "ARC_HALO_DATABASE_URL": url}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "arc_halo", *arguments],
                cwd=project,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process, number):
    """Signal it, and look at what it says when it goes."""
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == CODES[number], err
    check_said(err)
    assert out == ""
    said = "interrupted" if number == signal.SIGINT else "ended by SIGTERM"
    assert err.splitlines()[-1] == f"{said}: run the command again to go on"


def come_to(closed, process):
    """Wait until the program has come to the gate; if it ends before, say why."""
    wait_for(lambda: closed.is_reached() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[1]
    return closed.wait()


def check_said(err):
    assert "Traceback" not in err
    assert "psycopg" not in err
    assert "Exception" not in err
    assert PASSWORD not in err
    assert len(err.splitlines()) <= 2, err


@every_signal
@pytest.mark.parametrize("moment", SOME_MOMENTS)
def test_an_apply_that_is_interrupted_in_the_server_ends_and_the_next_finishes(
    scene, gate, start, undisturbed, number, moment
):
    """Its threads wait there, and the gate stays closed: only ending the statement helps."""
    closed = gate(*MOMENTS[moment])
    process = start("apply", url=scene.url)
    come_to(closed, process)
    finish(process, number)
    closed.remove()
    again = start("apply", url=scene.url)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert "m@1.0.0" in out
    scene.check_finished(undisturbed)


@every_signal
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--max-shard-size", "8MiB"), id="shards"),
        pytest.param((), id="one", marks=pytest.mark.campaign),
    ],
)
def test_an_export_that_is_interrupted_leaves_no_partial_file(
    scene, tmp_path, project, start, number, options
):
    apply_large(scene, project, start)
    out = tmp_path / "out"
    with Proxy(scene.server.port, pause_seconds=0.002) as proxy:
        url = scene.server.url(scene.database, port=proxy.port)
        process = start("export", "m", "-o", str(out), *options, url=url)
        wait_for(lambda: any(path.stat().st_size > 2**20 for path in parts(out)))
        finish(process, number)
    assert parts(out) == []
    again = start("export", "m", "-o", str(out), "--force", *options, url=scene.url)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert parts(out) == []


@every_signal
def test_an_apply_in_a_black_hole_can_be_interrupted(scene, gate, start, number):
    """A second line, on which to ask the server to stop, is a black hole as well."""
    closed = gate("chunk_bodies")
    with Proxy(scene.server.port, how="black hole", for_all=True) as proxy:
        process = start("apply", url=scene.server.url(scene.database, port=proxy.port))
        come_to(closed, process)
        proxy.break_all()
        finish(process, number)


def test_a_server_killed_in_an_apply_is_one_error_and_no_traceback(scene, gate, start, undisturbed):
    closed = gate("chunk_bodies")
    process = start("apply", url=scene.url)
    os.kill(come_to(closed, process), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    check_said(err)
    assert err.splitlines()[0].startswith("error[AH040]: the connection to the database was lost")
    assert err.splitlines()[1].startswith("   hint: run the command again")
    scene.server.wait()
    closed.remove()
    assert start("apply", url=scene.url).wait(60) == 0
    scene.check_finished(undisturbed)


def test_a_server_killed_in_an_export_is_one_error_and_no_file(scene, tmp_path, project, start):
    apply_large(scene, project, start)
    out = tmp_path / "out"
    with Proxy(scene.server.port, how="reset", direction="down", after=2**21) as proxy:
        url = scene.server.url(scene.database, port=proxy.port)
        process = start("export", "m", "-o", str(out), url=url)
        said, err = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "")
    check_said(err)
    assert err.startswith("error[AH040]: the connection to the database was lost")
    assert list(out.iterdir()) == []


def apply_large(scene: Scene, project, start):
    large = scene.large(project)
    (project / "arc_halo.yaml").write_text(MANIFEST.format(file=large.file.name))
    process = start("apply", url=scene.url)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def parts(directory):
    """The files that are not to stay."""
    return list(directory.glob(".*")) if directory.is_dir() else []
