"""A project and the databases that its commands are killed in: before each, and after it.

Whatever is killed whenever, the database is then as it was before or as it is after, and the next
run goes through without any unlocking. Shared by `gitops.py` and the tests of faults.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psycopg
from corpus import write_corpus
from psycopg import sql
from safetensors.numpy import save_file

TABLES = """
SELECT cls.relname, array_agg(att.attname ORDER BY att.attnum)
FROM pg_class AS cls
JOIN pg_namespace AS space ON space.oid = cls.relnamespace AND space.nspname = 'public'
JOIN pg_attribute AS att ON att.attrelid = cls.oid AND att.attnum > 0 AND NOT att.attisdropped
WHERE cls.relkind IN ('r', 'p') AND NOT cls.relispartition
  AND att.atttypid NOT IN ('uuid'::regtype, 'timestamptz'::regtype, 'timestamp'::regtype)
  AND NOT (att.atttypid = 'int8'::regtype AND att.attname ~ '(^|_)id$')
GROUP BY cls.relname
"""

INVISIBLE = (
    "weight_builds", "weight_sets", "weight_set_tensors", "tensor_metadata", "tensor_data",
    "chunk_bodies", "fused_tensors", "fused_tensor_inputs", "fusion_tasks", "yoyo_lock",
)  # fmt: skip
"""What a build commits on its way, and nothing that is visible points to until it is whole."""

OF_ONE_RUN = ("live_digest", "summary", "id", "duration_ms", "plan_digest")
"""What differs between two runs of the same thing, or follows from what does: a plan that finds
weights built, which an earlier run was killed after, is another plan."""

OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""

NO_REVISION = re.compile(r"\([^,]*,0,\)").fullmatch

SETTLED_SECONDS = 60.0

Dump = dict[str, list[str]]


class Server(Protocol):
    """A server that may be killed."""

    def url(self, database: str) -> str: ...
    def kill(self) -> None: ...
    def start(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is run, in a copy of which database; `again` is the exit code of a second run."""

    name: str
    arguments: tuple[str, ...]
    before: str | None
    again: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """What an operation takes and comes to when nobody kills anything."""

    seconds: float
    before: Dump
    after: Dump


@dataclass(slots=True, kw_only=True)
class Stage:
    """A project, and databases `bare`, `first` and `second`: nothing, one, two revisions."""

    directory: Path
    server: Server
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    def prepare(self, *, models: int = 40, reactors: int = 4) -> None:
        write_corpus(self.directory, models=models, reactors=reactors, files=2)
        for number in (1, 2):
            tensors = {"t": np.full((64, 64), number, np.float32)}
            save_file(tensors, self.directory / f"{number}.safetensors")
        self.create("bare", None)
        self.check("migrate", "up", database="bare")
        self.create("first", "bare")
        self.declare(1)
        self.check("apply", database="first")
        self.create("second", "first")
        self.declare(2)
        self.check("plan", "--out", str(self.plan), database="first")
        self.check("apply", "--yes", database="second")

    @property
    def plan(self) -> Path:
        return self.directory / "plan.json"

    @property
    def operations(self) -> list[Operation]:
        return [
            Operation(name="apply", arguments=("apply", "--yes"), before="bare"),
            Operation(name="migrate", arguments=("migrate", "up"), before=None),
            Operation(name="rollback", arguments=("rollback", "1", "--yes"), before="second"),
            Operation(
                name="saved plan",
                arguments=("apply", "--yes", str(self.plan)),
                before="first",
                again=3,
            ),
        ]

    def declare(self, revision: int) -> None:
        """Write the project file: in the second revision things are new, changed and gone."""
        head = (self.directory / "arc_halo.yaml").read_text().partition("\nmodels:")[0].rstrip()
        gone = "  left@1: {type: other}\n" if revision == 1 else "  come@1: {type: other}\n"
        (self.directory / "arc_halo.yaml").write_text(
            f"{head}\nmodels:\n{gone}"
            f"  a@1: {{weights: {revision}.safetensors, description: revision {revision}}}\n"
            "  b@1: {weights: 2.safetensors, aliases: [live]}\n"
            + (
                "reactors:\n  made:\n    type: merge\n    strategy: linear\n"
                "    members: [{model: a@1}, {model: b@1}]\n"
                "    produces: {model: made, version: '1'}\n"
                if revision == 2
                else ""
            )
            + "settings: {prune: true}\n"
        )

    def create(self, name: str, template: str | None) -> str:
        with self.administrator() as conn:
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(template or "template0")
                )
            )
        return self.server.url(name)

    @contextmanager
    def copy(self, template: str | None) -> Iterator[str]:
        """A new database, by its name."""
        name = f"trial_{next(self.numbers)}"
        self.create(name, template)
        try:
            yield name
        finally:
            with self.administrator() as conn:
                conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    @contextmanager
    def administrator(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as conn:
            yield conn

    def start(self, *arguments: str, url: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "arc_halo", *arguments, "--quiet"],
            cwd=self.directory,
            env={**os.environ, "ARC_HALO_DATABASE_URL": url},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def run(self, *arguments: str, database: str) -> tuple[int, str]:
        process = self.start(*arguments, url=self.server.url(database))
        _, said = process.communicate()
        return process.returncode, said

    def check(self, *arguments: str, database: str) -> None:
        code, said = self.run(*arguments, database=database)
        if code:
            raise AssertionError(f"arc-halo {' '.join(arguments)} exited with {code}: {said}")

    def dump(self, database: str) -> Dump:
        """All that is visible, once nobody is at work there any more."""
        with psycopg.connect(self.server.url(database), autocommit=True) as conn:
            _until(lambda: conn.execute(OTHERS).fetchone() == (0,))
            found = {
                name: _rows(conn, name, [c for c in columns if c not in OF_ONE_RUN])
                for name, columns in conn.execute(TABLES).fetchall()
                if name not in INVISIBLE
            }
        # A build names the project that it is for: a row without a revision is nothing yet.
        found["projects"] = [row for row in found.get("projects", ()) if not NO_REVISION(row)]
        return found

    def undisturbed(self, operation: Operation, *, runs: int = 2) -> Undisturbed:
        """Of the last of several runs: the first one warms up what is cached."""
        seconds = 0.0
        for _ in range(runs):
            with self.copy(operation.before) as name:
                before = self.dump(name)
                started = time.monotonic()
                self.check(*operation.arguments, database=name)
                seconds = time.monotonic() - started
                after = self.dump(name)
        return Undisturbed(seconds=seconds, before=before, after=after)

    def kill_once(self, operation: Operation, known: Undisturbed, share: float) -> str:
        """Kill the program at that share of its time; `before` or `after`, or `AssertionError`."""
        with self.copy(operation.before) as name:
            process = self.start(*operation.arguments, url=self.server.url(name))
            time.sleep(known.seconds * share)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return self._judge(operation, known, name, f"killed at {share:.3f}")

    def kill_server_once(self, operation: Operation, known: Undisturbed, share: float) -> str:
        """The same with the server; the program must come to an end by itself."""
        with self.copy(operation.before) as name:
            # A copy is whole on disk after this; PostgreSQL 18 loses indexes of unlogged tables in
            # one that was made just before a crash, which is not what is looked at here.
            with self.administrator() as conn:
                conn.execute("CHECKPOINT")
            process = self.start(*operation.arguments, url=self.server.url(name))
            time.sleep(known.seconds * share)
            self.server.kill()
            self.server.start()
            process.communicate(timeout=120)
            return self._judge(operation, known, name, f"server killed at {share:.3f}")

    def _judge(self, operation: Operation, known: Undisturbed, name: str, how: str) -> str:
        found = self.dump(name)
        if found not in (known.before, known.after):
            raise AssertionError(f"{operation.name} {how}: {_difference(found, known)}")
        verdict = "before" if found == known.before else "after"
        code, said = self.run(*operation.arguments, database=name)
        if code != (0 if verdict == "before" else operation.again):
            raise AssertionError(f"{operation.name} {how}, then {code}: {said}")
        if (found := self.dump(name)) != known.after:
            raise AssertionError(f"{operation.name} {how}, then: {_difference(found, known)}")
        return verdict


def shares(count: int, source: random.Random) -> list[float]:
    """Random moments, spread over a run and a while after it; Python is starting up before them."""
    return [0.25 + 1.05 * (number + source.random()) / count for number in range(count)]


def _rows(conn: psycopg.Connection[Any], table: str, columns: list[str]) -> list[str]:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    query = sql.SQL("SELECT ROW({})::text FROM {}").format(names, sql.Identifier(table))
    return sorted(row[0] for row in conn.execute(query))


def _difference(found: Dump, known: Undisturbed) -> str:
    """The tables that are neither as before nor as after, or not both the same."""
    said = []
    for name in sorted({*found, *known.before, *known.after}):
        rows, before, after = (each.get(name) for each in (found, known.before, known.after))
        if rows == after and rows == before:
            continue
        state = "after" if rows == after else "before" if rows == before else f"neither: {rows}"
        said.append(f"{name} as {state[:300]}")
    return "; ".join(said)


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SETTLED_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError("somebody goes on working in the database")
        time.sleep(0.02)
