"""Where training is measured: our database and MLflow's on one server, and their probes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np
import psycopg
from rows import Row
from server_cpu import SETTLED_SECONDS as SETTLED_SECONDS
from tensor_site import Cost, Site

from arc_halo.store import training_points
from arc_halo.store.connection import connect
from arc_halo.store.rows import Connection
from arc_halo.store.training_points import Points

MICROS = 800_000_000_000_000
"""Microseconds from 2000 to when the first point is said to have been logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """A server, a migrated database in it, a directory for files, and the Python with MLflow."""

    at: Site
    url: str
    mlflow: str | None = None
    _mlflow_urls: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return self.at.directory

    def probe(self, name: str, **arguments: object) -> Cost:
        """What a probe of ours measures in a fresh process."""
        given = {"url": self.url, "directory": str(self.directory), **arguments}
        return self._run(sys.executable, "training_probes.py", name, given)

    def probe_mlflow(self, name: str, **arguments: object) -> Cost:
        """What a probe of MLflow's measures in a fresh process."""
        assert self.mlflow is not None
        given = {"url": self.mlflow_url(), **arguments}
        return self._run(self.mlflow, "training_mlflow.py", name, given)

    def mlflow_url(self) -> str:
        """The address of MLflow's database, which is made when first asked for."""
        if not self._mlflow_urls:
            with psycopg.connect(self.at.url, autocommit=True) as conn:
                conn.execute("CREATE DATABASE mlflow")
            parts = urlsplit(self.at.url)
            self._mlflow_urls.append(parts._replace(path="/mlflow").geturl())
        return self._mlflow_urls[0]

    def session(self, name: str) -> UUID:
        """A session of that name, without points."""
        with connect(self.url) as conn:
            row = conn.execute(
                "INSERT INTO training_sessions (session_name, model_name, model_version)"
                " VALUES (%s, 'bench', '1.0.0') RETURNING id",
                [name],
            ).fetchone()
        assert row is not None
        return row[0]

    def fill(self, session: UUID, keys: Sequence[str], steps: int, batch: int) -> None:
        """Points of each key for all steps, in batches of so many steps, as the log writes them."""
        with connect(self.url) as conn:
            training_points.add_series(conn, session, [(key, "train") for key in keys])
            known = training_points.series(conn, session)
            ids = [known[key, "train"][0] for key in keys]
            for first in range(0, steps, batch):
                copy_points(conn, ids, first, min(steps, first + batch))

    def _run(self, python: str, file: str, name: str, given: dict[str, Any]) -> Cost:
        script = Path(__file__).with_name(file)
        arguments = json.dumps({**given, "postmaster": self.at.postmaster}, default=str)
        done = subprocess.run(
            [python, str(script), name, arguments], stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise SystemExit(f"the probe {name} of {file} exited with {done.returncode}")
        found = json.loads(done.stdout.splitlines()[-1])
        return Cost(client=found.pop("client"), server=found.pop("server"), said=found)


def copy_points(conn: Connection, series: Sequence[int], first: int, end: int) -> None:
    """Points of some series, of the steps from `first` to before `end`."""
    steps = np.tile(np.arange(first, end), len(series))
    values = np.random.default_rng(first).standard_normal(len(steps))
    values[::100] = np.nan
    training_points.copy_points(
        conn,
        Points(
            series=np.repeat(np.array(series, np.int32), end - first),
            epochs=(steps / 1000).astype(np.float32),
            steps=steps,
            values=values,
            micros=MICROS + steps * 1000,
        ),
    )


def execute(url: str, statement: LiteralString) -> Any:
    """The first column of a statement's first row, if it has one; outside of a transaction."""
    with psycopg.connect(url, autocommit=True) as conn:
        found = conn.execute(statement)
        row = found.fetchone() if found.description else None
    return row[0] if row else None


def bar(what: str, figure: str, value: float, bar: float, op: str) -> Row:
    is_met = value >= bar if op == ">=" else value <= bar
    return Row(what=what, figure=figure, bar=f"{op} {bar:g}", is_met=is_met)
