"""Reactors: what running them costs beyond their members, and whether they wait for one another.

    python benchmarks/reactors.py [--runs N]

Seconds are CPU seconds of the program and of the server, on an embedded server in a temporary
directory. Exits with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from rows import Row, show
from tensor_site import SETTLED_SECONDS, Site, server_seconds, site

from arc_halo import Project

MEMBERS, BATCH, CLASSES = 4, 64, 10
SLEEPS = (0.1, 0.15, 0.2, 0.3)

SLEEPING = """
import time
import numpy as np
from contextlib import contextmanager
from arc_halo import ModelRunner, Outputs, hookimpl


@hookimpl
def arc_halo_runners():
    yield ModelRunner(
        name="sleeping", version=1, summary="sleeps", open=open_sleeping,
        params_schema={
            "type": "object", "additionalProperties": False, "required": ["seconds"],
            "properties": {"seconds": {"type": "number", "description": "How long."}},
        },
    )


@contextmanager
def open_sleeping(context, *, seconds):
    yield Sleeping(seconds)


class Sleeping:
    def __init__(self, seconds):
        self.seconds = seconds

    def answer(self, inputs):
        time.sleep(self.seconds)
        return Outputs(scores=np.full((len(inputs), 2), 0.5))
"""


def project(directory: Path, runners: Sequence[dict[str, object]], **fields: object) -> Path:
    """A project with a reactor `r` of a model for each runner."""
    directory.mkdir()
    (directory / "sleeping.py").write_text(SLEEPING)
    models = {f"m{i}@1": {"type": "other", "runner": each} for i, each in enumerate(runners)}
    members = [{"model": f"m{i}"} for i in range(len(runners))]
    reactor = {"type": "ensemble", "strategy": "weighted_average", "members": members, **fields}
    manifest = {
        "version": 1,
        "project": "bench",
        "plugins": ["sleeping.py"],
        "models": models,
        "reactors": {"r": reactor},
    }
    (directory / "arc_halo.yaml").write_text(json.dumps(manifest))
    return directory


def overhead(found: Site, directory: Path, runs: int) -> Iterator[Row]:
    """Milliseconds of CPU that a run takes, less those of its members, which answer from memory."""
    numbers = np.random.default_rng(0)
    runners: list[dict[str, object]] = []
    made = project(directory, [])
    for index in range(MEMBERS):
        table = numbers.dirichlet(np.ones(CLASSES), size=1000)
        np.savez(made / f"{index}.npz", probabilities=table)
        runners.append({"uses": "recorded", "params": {"predictions": f"{index}.npz"}})
    for file in ("arc_halo.yaml", "sleeping.py"):
        (made / file).unlink()
    tables = {each.name: each.read_bytes() for each in made.iterdir()}
    for each in made.iterdir():
        each.unlink()
    made.rmdir()
    made = project(directory, runners)
    for name, content in tables.items():
        (made / name).write_bytes(content)
    url = found.create_database("overhead")
    inputs = list(range(BATCH))
    with Project(made, database_url=url) as opened:
        opened.apply(opened.plan())
        with opened.open_reactor("r") as reactor:
            for _ in range(20):
                answer = reactor.run(inputs)
            time.sleep(SETTLED_SECONDS)
            server, client = server_seconds(found.postmaster), time.process_time()
            for _ in range(runs):
                answer = reactor.run(inputs)
            client = time.process_time() - client
            time.sleep(SETTLED_SECONDS)
            server = server_seconds(found.postmaster) - server
            models = sum(each.seconds for each in answer.members)
    cost_ms = 1000 * ((client + server) / runs - models)
    yield Row(
        what=f"a run beyond its {MEMBERS} members, batch of {BATCH}, recorded",
        figure=f"{cost_ms:.2f} ms  ({1000 * client / runs:.2f} client, "
        f"{1000 * server / runs:.2f} server)",
        bar="<= 5",
        is_met=cost_ms <= 5,
    )


def waiting(found: Site, directory: Path) -> Iterator[Row]:
    """The wall seconds of a run over those of its slowest member, which sleeps."""
    runners: list[dict[str, object]] = [
        {"uses": "sleeping", "params": {"seconds": seconds}} for seconds in SLEEPS
    ]
    made = project(directory, runners)
    with Project(made, database_url=found.create_database("waiting")) as opened:
        opened.apply(opened.plan())
        with opened.open_reactor("r") as reactor:
            reactor.run([0])
            walls = []
            for _ in range(5):
                started = time.perf_counter()
                reactor.run([0])
                walls.append(time.perf_counter() - started)
    ratio = median(walls) / max(SLEEPS)
    yield Row(
        what="parallel members: wall / the slowest member's",
        figure=f"{ratio:.3f}  ({median(walls):.3f} / {max(SLEEPS)} s)",
        bar="<= 1.15",
        is_met=ratio <= 1.15,
    )


def measure(runs: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="arc-halo-bench-") as root:
        directory = Path(root)
        (directory / "site").mkdir()
        with site(directory / "site") as found:
            yield from overhead(found, directory / "overhead", runs)
            yield from waiting(found, directory / "waiting")


def main() -> int:
    parser = argparse.ArgumentParser(description="Reactors: their overhead, and their waiting.")
    parser.add_argument("--runs", type=int, default=200)
    return show(measure(parser.parse_args().runs))


if __name__ == "__main__":
    sys.exit(main())
