"""Merges computed by threads, processes and a Dask cluster: the same bits, whoever dies midway."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import yaml
from safetensors.numpy import save_file

from arc_halo import connect
from arc_halo.errors import FusionError, InvalidInputError, UnknownPluginError
from arc_halo.project import Project

NAMES = ("base", "poet", "coder")
TENSORS = 16
SECONDS = 60.0

# It leaves a line for each tensor that it begins with, and takes its time.
SLOW = """
import os
import time
from pathlib import Path

from arc_halo import FusionStrategy, hookimpl

LOG = Path(__file__).with_name("begun.txt")


@hookimpl
def arc_halo_fusion_strategies():
    yield FusionStrategy(
        name="slow", version=1, summary="a mean, in no hurry", fuse_weights=slow,
        part="elements", numerics="exact",
    )


def slow(tensors, context):
    if context.start == 0:
        with LOG.open("a") as log:
            log.write(f"{os.getpid()} {context.tensor}\\n")
        time.sleep(0.1)
    return (tensors[0] + tensors[1]) / 2
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    numbers = np.random.default_rng(3)
    base = {f"layers.{i}.w": numbers.normal(size=(40 + 30 * i, 200)) for i in range(TENSORS)}
    for name in NAMES:
        found = {
            n: (v + numbers.normal(0, 0.1, v.shape)).astype(np.float32) for n, v in base.items()
        }
        (tmp_path / name).mkdir()
        save_file(found, tmp_path / name / "model.safetensors")
    (tmp_path / "slow.py").write_text(SLOW)
    return tmp_path


def write(directory: Path, strategy: str, *, threads: int = 2, **params: Any) -> None:
    needs_base = strategy != "slow"
    reactor = {
        "type": "merge",
        "strategy": strategy,
        "params": params,
        **({"base": "base"} if needs_base else {}),
        "members": [{"model": "poet", "weight": 0.6}, {"model": "coder", "weight": 0.3}],
        "produces": {"model": "blend", "version": "1"},
    }
    manifest = {
        "version": 1,
        "project": "shop",
        "plugins": ["slow.py"],
        "settings": {"threads": threads},
        "models": {f"{name}@1": {"type": "other", "weights": name} for name in NAMES},
        "reactors": {"blend": reactor},
    }
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))


def apply(directory: Path, url: str, executor: str) -> str:
    """The root that an apply comes to."""
    with Project(directory, database_url=url, executor=executor) as project:
        project.migrate()
        project.apply(project.plan())
    return root(directory, url)


def root(directory: Path, url: str) -> str:
    with connect(url, project=directory) as halo:
        return str(halo.models.get("blend").root.hex())


def begun(directory: Path) -> list[tuple[int, str]]:
    """(process, tensor) of everything that was begun."""
    log = directory / "begun.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(pid), name) for pid, name in (line.split() for line in lines)]


def is_done(url: str, count: int) -> bool:
    with psycopg.connect(url) as conn:
        try:
            row = conn.execute("SELECT count(*) FROM fusion_tasks WHERE status = 'done'").fetchone()
        except psycopg.errors.UndefinedTable:
            return False
    return row is not None and row[0] >= count


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    """Starts an apply in a process of its own; killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(url: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "arc_halo", "apply", "--quiet", "--database-url", url]
        started.append(
            subprocess.Popen(
                [*command, *options],
                cwd=directory,
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


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code, and what it said."""
    _, err = process.communicate(timeout=SECONDS)
    return process.returncode, err


@pytest.fixture
def databases(create_database: Callable[[str | None], str], template: str) -> Callable[[], str]:
    """Creates migrated databases."""
    return lambda: create_database(template)


@contextmanager
def dask_cluster(url: str) -> Iterator[str]:
    """A scheduler and two workers, each a process of its own, as the page says; its address."""
    environ = {**os.environ, "ARC_HALO_DATABASE_URL": url}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environ}
    with socket_free() as port:
        pass
    address = f"127.0.0.1:{port}"
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port",
         str(port), "--no-dashboard"],
        **quiet,
    )  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{address}", "--no-nanny",
             "--no-dashboard", "--nthreads", "1"],
            **quiet,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        wait_for_cluster(address)
        yield address
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


@contextmanager
def socket_free() -> Iterator[int]:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield found.getsockname()[1]


def wait_for_cluster(address: str) -> None:
    from distributed import Client

    with Client(f"tcp://{address}", timeout=30, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=30)


EXACT = {"ties": {"density": 0.4}, "dare_ties": {"density": 0.5, "seed": 3}, "model_stock": {}}


@pytest.mark.parametrize(
    "strategy",
    ["ties", *(pytest.param(n, marks=pytest.mark.campaign) for n in EXACT if n != "ties")],
)
def test_threads_and_processes_come_to_one_root(
    directory: Path, databases: Callable[[], str], strategy: str
) -> None:
    roots = Counter[str]()
    for executor, counts in (("threads", (1, 8)), ("processes", (1, 4))):
        for count in counts:
            write(directory, strategy, threads=count, **EXACT[strategy])
            roots[apply(directory, databases(), executor)] += 1
    assert len(roots) == 1


def test_a_killed_process_costs_the_tensor_it_was_at(
    directory: Path, start: Start, database: str
) -> None:
    write(directory, "slow")
    process = start(database, "--executor", "processes")
    wait_for(lambda: is_done(database, 3))
    os.kill(begun(directory)[0][0], signal.SIGKILL)
    assert ended(process) == (0, "")
    check_begun(directory, lost=2)


def test_a_killed_worker_of_a_dask_cluster_costs_the_tensor_it_was_at(
    directory: Path, start: Start, database: str, databases: Callable[[], str]
) -> None:
    write(directory, "slow")
    with dask_cluster(database) as address:
        process = start(database, "--executor", f"dask://{address}")
        wait_for(lambda: is_done(database, 3))
        os.kill(begun(directory)[0][0], signal.SIGKILL)
        assert ended(process) == (0, "")
    check_begun(directory, lost=1)
    assert root(directory, database) == apply(directory, databases(), "threads")


def check_begun(directory: Path, *, lost: int) -> None:
    """Every tensor was begun; at most `lost` of them more than once."""
    counts = Counter(name for _, name in begun(directory))
    assert len(counts) == TENSORS
    assert sum(counts.values()) <= TENSORS + lost


def test_a_killed_program_has_its_workers_stop(
    directory: Path, start: Start, database: str
) -> None:
    write(directory, "slow")
    process = start(database, "--executor", "processes")
    wait_for(lambda: is_done(database, 3))
    process.kill()
    process.wait()
    pids = {pid for pid, _ in begun(directory)}
    wait_for(lambda: not any(map(is_alive, pids)))
    assert not is_done(database, TENSORS)
    before = Counter(name for _, name in begun(directory))
    apply(directory, database, "processes")
    counts = Counter(name for _, name in begun(directory)) - before
    assert sum(counts.values()) <= TENSORS - len(before) + 2


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupt_ends_the_workers_too(
    directory: Path, start: Start, database: str, number: signal.Signals
) -> None:
    write(directory, "slow")
    process = start(database, "--executor", "processes")
    wait_for(lambda: is_done(database, 2))
    process.send_signal(number)
    code, err = ended(process)
    assert code == 128 + number
    assert "Traceback" not in err
    wait_for(lambda: not any(is_alive(pid) for pid, _ in begun(directory)))
    assert not is_done(database, TENSORS)


def test_two_programs_share_the_work_of_one_merge(
    directory: Path, start: Start, database: str
) -> None:
    write(directory, "slow")
    processes = [start(database) for _ in range(2)]
    codes = sorted(ended(process)[0] for process in processes)
    # The second finds a revision that it did not plan for, or nothing to do.
    assert codes in ([0, 0], [0, 3])
    check_begun(directory, lost=0)


def test_the_embedded_server_is_refused_to_workers_on_other_machines(directory: Path) -> None:
    write(directory, "slow")
    with Project(directory, environ={}, executor="dask://127.0.0.1:1") as project:
        project.migrate()
        with pytest.raises(InvalidInputError, match="the embedded server is reached from this"):
            project.apply(project.plan())


def test_an_executor_that_is_not_there_is_told_before_anything_begins(
    directory: Path, database: str
) -> None:
    write(directory, "slow")
    with (
        Project(directory, database_url=database, executor="procesess") as project,
        pytest.raises(UnknownPluginError) as caught,
    ):
        project.check_executor()
    assert "processes" in (caught.value.hint or "")


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_what_a_strategy_cannot_do_is_told_whoever_tried(
    directory: Path, database: str, executor: str
) -> None:
    write(directory, "ties", density=0.5)
    text = (directory / "arc_halo.yaml").read_text()
    (directory / "arc_halo.yaml").write_text(text.replace("weight: 0.6", "weight: 1.0e+300"))
    save_file(
        {f"layers.{i}.w": np.full((40 + 30 * i, 200), np.nan, np.float32) for i in range(TENSORS)},
        directory / "poet" / "model.safetensors",
    )
    (directory / "arc_halo.yaml").write_text(text)
    with pytest.raises(FusionError, match="these hold NaN or infinity"):
        apply(directory, database, executor)


@pytest.mark.parametrize("trial", range(4))
def test_a_program_killed_at_any_moment_is_gone_on_with(
    directory: Path, start: Start, databases: Callable[[], str], trial: int
) -> None:
    kill_and_go_on(directory, start, databases, random.Random(trial))


@pytest.mark.campaign
@pytest.mark.parametrize("trial", range(100))
def test_a_hundred_killed_programs_are_gone_on_with(
    directory: Path, start: Start, databases: Callable[[], str], trial: int
) -> None:
    kill_and_go_on(directory, start, databases, random.Random(1000 + trial))


def kill_and_go_on(
    directory: Path, start: Start, databases: Callable[[], str], chance: random.Random
) -> None:
    """Two workers were at a tensor each: no more than these are begun again."""
    write(directory, "slow")
    url = databases()
    process = start(url)
    wait_for(lambda: is_done(url, chance.randrange(TENSORS - 2)))
    time.sleep(chance.random() * 0.15)
    process.kill()
    process.wait()
    killed = root_of_nothing(url)
    found = apply(directory, url, "threads")
    check_begun(directory, lost=2)
    assert killed == 0
    (directory / "begun.txt").unlink()
    assert found == apply(directory, databases(), "threads")


def root_of_nothing(url: str) -> int:
    """How many models of that name can be loaded while it is half merged: none."""
    with psycopg.connect(url) as conn:
        row = conn.execute("SELECT count(*) FROM models WHERE model_name = 'blend'").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_a_cut_connection_costs_the_tensor_it_was_for(
    directory: Path, start: Start, database: str, executor: str
) -> None:
    write(directory, "slow")
    process = start(database, "--executor", executor)
    wait_for(lambda: is_done(database, 3))
    with psycopg.connect(database) as conn:
        conn.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND state = 'idle in transaction'
               ORDER BY application_name DESC, pid LIMIT 1"""
        )
    assert ended(process)[0] == 0
    check_begun(directory, lost=2)


def test_two_programs_with_processes_wait_for_one_another(
    directory: Path, start: Start, database: str
) -> None:
    write(directory, "slow")
    text = (directory / "slow.py").read_text()
    (directory / "slow.py").write_text(text.replace("time.sleep(0.1)", "time.sleep(1.0)"))
    processes = [start(database, "--executor", "processes") for _ in range(2)]
    codes = sorted(ended(process)[0] for process in processes)
    assert codes in ([0, 0], [0, 3])
    check_begun(directory, lost=0)


def test_two_projects_compute_what_they_share_once(
    directory: Path, start: Start, database: str
) -> None:
    write(directory, "slow")
    other = directory / "other"
    other.mkdir()
    for name in NAMES:
        (other / name).symlink_to(directory / name)
    (other / "slow.py").symlink_to(directory / "slow.py")
    text = (directory / "arc_halo.yaml").read_text()
    text = text.replace("project: shop", "project: stall").replace("blend", "mix")
    for name in NAMES:
        text = text.replace(f"{name}@1:", f"{name}-too@1:").replace(
            f"model: {name}", f"model: {name}-too"
        )
    (other / "arc_halo.yaml").write_text(text)
    first = start(database)
    second = start(database, "--project", str(other), "--allow-path", str(directory))
    assert [ended(each)[0] for each in (first, second)] == [0, 0]
    check_begun(directory, lost=0)
