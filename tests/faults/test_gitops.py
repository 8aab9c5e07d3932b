"""What GitOps relies on, at random moments: no half states after a kill, no secret anywhere.

The moments are few here, and many with `pytest -m campaign tests/faults/test_gitops.py`, which
records its seed; `benchmarks/gitops.py` does the same and counts.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from arc_halo.cli.main import run as run_program
from tests.faults.conftest import copied

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from gitops_secrets import leaks
from gitops_stage import Operation, Stage, shares

FEW = 1
MANY, MANY_OF_THE_SERVER = 50, 20


@pytest.fixture(scope="module")
def stage(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with copied(cluster[0]) as server:
        server.start()
        found = Stage(directory=tmp_path_factory.mktemp("gitops") / "project", server=server)
        found.prepare(models=8, reactors=2)
        yield found


def operation(stage: Stage, name: str) -> Operation:
    return next(each for each in stage.operations if each.name == name)


@pytest.mark.parametrize("name", ["migrate", "rollback", "saved plan"])
def test_a_killed_program_leaves_before_or_after_and_the_next_run_works(
    stage: Stage, name: str
) -> None:
    known = stage.undisturbed(operation(stage, name), runs=1)
    for share in shares(FEW, random.Random()):
        stage.kill_once(operation(stage, name), known, share)


def test_a_killed_server_leaves_before_or_after_and_the_next_run_works(stage: Stage) -> None:
    saved = operation(stage, "saved plan")
    known = stage.undisturbed(saved, runs=1)
    stage.kill_server_once(saved, known, random.uniform(0.5, 1.0))


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["apply", "migrate", "rollback", "saved plan"])
def test_no_moment_of_a_kill_leaves_half_a_state(
    stage: Stage, name: str, record_property: Callable[[str, object], None]
) -> None:
    seed = random.randrange(10**6)
    record_property("seed", seed)
    known = stage.undisturbed(operation(stage, name))
    for share in shares(MANY, random.Random(seed)):
        stage.kill_once(operation(stage, name), known, share)
    for share in shares(MANY_OF_THE_SERVER, random.Random(seed)):
        stage.kill_server_once(operation(stage, name), known, share)


def test_a_secret_is_found_nowhere_but_where_it_was_put(
    stage: Stage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def run(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("PLANTED_")]:
                patch.delenv(name)
            for name, value in environ.items():
                patch.setenv(name, value)
            code = run_program(list(arguments))
        said = capfd.readouterr()
        return f"{code} {said.out}{said.err}"

    server: Any = stage.server
    with stage.copy("bare") as name:
        found, places = leaks(tmp_path, server.url(name), run, server.log)
    assert found == []
    assert places > 60
