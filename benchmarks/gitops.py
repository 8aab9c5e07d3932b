"""Plans, applies, drift and faults of the corpus, against the bars that this project sets itself.

    python benchmarks/gitops.py [--quick] [--only NAME ...] [--repetitions N] [--seed N]

NAMEs are plans, terraform, apply, drift, concurrent, kill and secret. CPU seconds are those of the
commands and of the server together, user and system; what is random has its seed printed. Linux
only. Exits with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from corpus import FILES, MODELS, REACTORS
from gitops_secrets import leaks
from gitops_stage import Operation, Stage, Undisturbed, shares
from psycopg.conninfo import make_conninfo
from reconcile_site import Site, environment, site
from rows import Row, show

from arc_halo import embedded
from arc_halo.bundled.place import Place
from arc_halo.errors import EmbeddedServerError

FAST_SECONDS, COLD_SECONDS, APPLY_SECONDS, DRIFT_SECONDS = 0.5, 4.0, 12.0, 1.0
TERRAFORM_RATIO, TERRAFORM_RESOURCES = 20.0, 1_000
APPLIES, KILLS, SERVER_KILLS = 20, 50, 20
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line asks for."""

    scale: int
    repetitions: int
    seed: int
    kills: int
    server_kills: int


@dataclass(slots=True, kw_only=True)
class BundledServer:
    """The bundled server of a directory, to be killed and started again."""

    directory: Path
    address: str

    @classmethod
    @contextmanager
    def running(cls, directory: Path) -> Iterator[BundledServer]:
        directory.mkdir(parents=True)
        try:
            yield cls(directory=directory, address=embedded.start(directory).url)
        finally:
            embedded.stop(directory, force=True)

    @property
    def log(self) -> Path:
        return Place(self.directory).log

    def url(self, database: str) -> str:
        return make_conninfo(self.address, dbname=database)

    def kill(self) -> None:
        pid = embedded.status(self.directory).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.01)

    def start(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                embedded.start(self.directory)
            except EmbeddedServerError:  # the children of the killed one are on their way out
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return


def plan_rows(large: Site, asked: Asked) -> Iterator[Row]:
    """A plan with nothing to do, twice in a row, and one that reads everything."""
    large.command("plan", "--detailed-exitcode")
    runs = [large.command("plan", "--detailed-exitcode") for _ in range(asked.repetitions)]
    yield _seconds("no-op plan, unchanged files, CPU-s", large, runs, FAST_SECONDS)
    runs = [
        large.command("plan", "--no-cache", "--detailed-exitcode") for _ in range(asked.repetitions)
    ]
    yield _seconds("no-op plan, cold, CPU-s", large, runs, COLD_SECONDS)


def terraform_rows(large: Site, asked: Asked) -> Iterator[Row]:
    """The same of terraform, for a tenth of the resources."""
    program = shutil.which("terraform")
    if program is None:
        yield Row(what="terraform plan", figure="NOT MEASURED: terraform is not installed")
        return
    count = TERRAFORM_RESOURCES // asked.scale
    with tempfile.TemporaryDirectory(prefix="arc-halo-terraform-") as directory:
        _terraform_project(Path(directory), count)
        _charged(program, "init", "-input=false", directory=directory)
        _charged(program, "apply", "-auto-approve", "-input=false", directory=directory)
        theirs = median(
            _charged(program, "plan", "-detailed-exitcode", "-input=false", directory=directory)
            for _ in range(min(asked.repetitions, 3))
        )
    for what, options in (("cold", ("--no-cache",)), ("unchanged files", ())):
        large.command("plan", *options)
        runs = [large.command("plan", *options).cpu for _ in range(asked.repetitions)]
        ratio = theirs / median(runs)
        yield Row(
            what=f"terraform plan of {count:,} / ours of {large.size:,}, {what}",
            figure=f"{ratio:.0f}x  ({theirs:.1f} / {median(runs):.2f} CPU-s)",
            bar="" if options else f">= {TERRAFORM_RATIO:g}x",
            is_met=None if options else ratio >= TERRAFORM_RATIO,
        )


def apply_row(large: Site, asked: Asked) -> Row:
    """The first apply, of which there is only one: all resources are new."""
    run = large.command("apply")
    return Row(
        what=f"apply of {large.size:,} new resources, CPU-s",
        figure=f"{run.cpu:.2f}  (client {run.client:.2f}, server {run.server:.2f})",
        bar=f"<= {APPLY_SECONDS:g}",
        is_met=run.cpu <= APPLY_SECONDS,
    )


def drift_rows(large: Site, asked: Asked) -> Iterator[Row]:
    runs = [large.command("drift") for _ in range(asked.repetitions)]
    yield _seconds(f"drift of {large.size:,}, CPU-s", large, runs, DRIFT_SECONDS)


def concurrent_rows(stage: Stage, asked: Asked) -> Iterator[Row]:
    """Twenty processes that apply one saved plan at once."""
    saved = next(each for each in stage.operations if each.name == "saved plan")
    known = stage.undisturbed(saved)
    with stage.copy(saved.before) as name:
        url = stage.server.url(name)
        started = [stage.start(*saved.arguments, url=url) for _ in range(APPLIES)]
        codes = []
        for process in started:
            process.communicate()
            codes.append(process.returncode)
        is_right = stage.dump(name) == known.after
    wrong = sum(code not in (0, 3) for code in codes) + (not is_right)
    yield Row(
        what=f"{APPLIES} applies of one plan at once",
        figure=f"{codes.count(0)} done, {codes.count(3)} stale, {wrong} wrong",
        bar=f"1, {APPLIES - 1}, 0",
        is_met=(codes.count(0), codes.count(3), wrong) == (1, APPLIES - 1, 0),
    )


def kill_rows(stage: Stage, asked: Asked) -> Iterator[Row]:
    """Programs and servers killed at random moments."""
    source = random.Random(asked.seed)
    every = [(operation, stage.undisturbed(operation)) for operation in stage.operations]
    for operation, known in every:
        trials = shares(asked.kills, source)
        yield _killed(f"kill -9 of {operation.name}", stage.kill_once, operation, known, trials)
    apply, known = every[0]
    trials = shares(asked.server_kills, source)
    yield _killed("the server killed in apply", stage.kill_server_once, apply, known, trials)


def secret_row(stage: Stage, asked: Asked) -> Row:
    """What is planted, looked for in everything that is written anywhere."""
    server = stage.server
    assert isinstance(server, BundledServer)

    def run(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "arc_halo", *arguments],
            env={**environment(), **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        return f"{done.returncode} {done.stdout}{done.stderr}"

    with stage.copy("bare") as name, tempfile.TemporaryDirectory() as directory:
        found, places = leaks(
            Path(directory), server.url(name), run, lambda: server.log.read_text(errors="replace")
        )
    return Row(
        what=f"a planted secret, in {places} places",
        figure=f"found in {len(found)}" + (f": {', '.join(found)}" if found else ""),
        bar="0",
        is_met=not found,
    )


def _seconds(what: str, large: Site, runs: Sequence[object], bar: float) -> Row:
    """The median of what several runs took, against a bar in CPU seconds."""
    cpu, client, server = (
        median(getattr(run, name) for run in runs) for name in ("cpu", "client", "server")
    )
    return Row(
        what=what,
        figure=f"{cpu:.2f}  (client {client:.2f}, server {server:.2f})",
        bar=f"<= {bar:g}",
        is_met=cpu <= bar,
    )


def _killed(
    what: str,
    kill: Callable[[Operation, Undisturbed, float], str],
    operation: Operation,
    known: Undisturbed,
    trials: Sequence[float],
) -> Row:
    verdicts, halves = [], []
    for share in trials:
        try:
            verdicts.append(kill(operation, known, share))
        except AssertionError as exc:
            halves.append(str(exc))
            print(f"  {exc}", file=sys.stderr)
    return Row(
        what=f"{what} at {len(trials)} moments of {known.seconds:.1f} s",
        figure=f"{verdicts.count('before')} as before, {verdicts.count('after')} as after, "
        f"{len(halves)} half",
        bar="0 half",
        is_met=not halves,
    )


def _terraform_project(directory: Path, count: int) -> None:
    resource = {f"r{n}": {"input": {"n": n, "text": f"resource {n}"}} for n in range(count)}
    text = json.dumps({"resource": {"terraform_data": resource}})
    (directory / "main.tf.json").write_text(text)


def _charged(program: str, *arguments: str, directory: str) -> float:
    """The CPU seconds of a command and of all that it starts; it must succeed."""
    process = subprocess.Popen(
        [program, *arguments],
        cwd=directory,
        env={**os.environ, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"terraform {arguments[0]} exited with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


CORPUS: Mapping[str, Callable[[Site, Asked], Iterator[Row]]] = {
    "plans": plan_rows,
    "terraform": terraform_rows,
    "drift": drift_rows,
}
STAGE: Mapping[str, Callable[[Stage, Asked], Iterator[Row]]] = {
    "concurrent": concurrent_rows,
    "kill": kill_rows,
    "secret": lambda stage, asked: iter((secret_row(stage, asked),)),
}
NAMES = (*CORPUS, "apply", *STAGE)


def measure(root: Path, names: Sequence[str], asked: Asked) -> Iterator[Row]:
    if not STAGE.keys() >= set(names):
        sizes = (MODELS // asked.scale, REACTORS // asked.scale, FILES // asked.scale)
        with site(root / "corpus", *sizes) as large:
            yield apply_row(large, asked)
            for name in CORPUS:
                if name in names:
                    yield from CORPUS[name](large, asked)
    if not STAGE.keys().isdisjoint(names):
        with BundledServer.running(root / "server") as server:
            stage = Stage(directory=root / "project", server=server)
            started = time.monotonic()
            stage.prepare()
            print(f"  seed {asked.seed}; prepared in {time.monotonic() - started:.0f} s")
            for name in STAGE:
                if name in names:
                    yield from STAGE[name](stage, asked)


def main() -> int:
    """Print the rows as they come; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description="Plans, applies, drift and faults of the corpus.")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    scale = 10 if given.quick else 1
    asked = Asked(
        scale=scale,
        repetitions=given.repetitions,
        seed=given.seed,
        kills=KILLS // scale,
        server_kills=SERVER_KILLS // scale,
    )
    with tempfile.TemporaryDirectory(prefix="arc-halo-bench-") as root:
        return show(measure(Path(root), given.only, asked))


if __name__ == "__main__":
    sys.exit(main())
