"""Where training is measured: our database and MLflow's on one server, and their probes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np
import psycopg
import psycopg.sql
from psycopg.conninfo import conninfo_to_dict
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
    """A server, a migrated database in it, a directory, and the Pythons with MLflow and Trackio."""

    at: Site
    url: str
    mlflow: str | None = None
    trackio: str | None = None
    _mlflow_urls: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return self.at.directory

    def probe(self, name: str, **arguments: object) -> Cost:
        """What a probe of ours measures in a fresh process."""
        given = {"url": self.url, "directory": str(self.directory), **arguments}
        return self._run(sys.executable, "training_probes.py", name, self._on_server(given))

    def probe_mlflow(self, name: str, **arguments: object) -> Cost:
        """What a probe of MLflow's measures in a fresh process."""
        assert self.mlflow is not None
        given = {"url": self.mlflow_url(), **arguments}
        return self._run(self.mlflow, "training_mlflow.py", name, self._on_server(given))

    def probe_trackio(self, **arguments: object) -> Cost:
        """What Trackio's probe measures in a fresh process."""
        assert self.trackio is not None
        return self._run(self.trackio, "training_trackio.py", None, arguments)

    def mlflow_url(self) -> str:
        """The address of a database of MLflow's, which is made when first asked for."""
        if not self._mlflow_urls:
            name = f"mlflow_{conninfo_to_dict(self.url)['dbname']}"
            with psycopg.connect(self.at.url, autocommit=True) as conn:
                conn.execute(
                    psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name))
                )
            self._mlflow_urls.append(urlsplit(self.at.url)._replace(path=f"/{name}").geturl())
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

    def _on_server(self, given: dict[str, Any]) -> dict[str, Any]:
        return {**given, "postmaster": self.at.postmaster}

    @staticmethod
    def _run(python: str, file: str, name: str | None, given: Mapping[str, object]) -> Cost:
        script = Path(__file__).with_name(file)
        words = [] if name is None else [name]
        done = subprocess.run(
            [python, str(script), *words, json.dumps(given, default=str)],
            stdout=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"the probe {name or ''} of {file} exited with {done.returncode}")
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
