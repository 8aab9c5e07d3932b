"""MLflow's side of `training.py`, run by the Python that has MLflow: `training.py --mlflow PYTHON`.

    PYTHON training_mlflow.py PROBE ARGUMENTS-AS-JSON

prints one JSON object. MLflow stores in a database of the same server as we do.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

from server_cpu import charged

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
KEY = "loss"


def log(*, url: str, points: int, batch: int, postmaster: int) -> dict[str, Any]:
    """A run that logs points of one metric by `log_batch`; what that took, and the run's id."""
    from mlflow.entities import Metric

    client, run_id = _run(url)
    client.log_batch(run_id, metrics=[Metric("warm", 1.0, 0, 0)])
    started = time.perf_counter()
    with charged(postmaster) as cost:
        for first in range(0, points, batch):
            steps = range(first, min(points, first + batch))
            now = time.time_ns() // 1_000_000
            client.log_batch(run_id, metrics=[Metric(KEY, 1 / (1 + i), now, i) for i in steps])
        seconds = time.perf_counter() - started
    return {**cost, "seconds": seconds, "run": run_id}


def read(*, url: str, run: str, postmaster: int) -> dict[str, Any]:
    """The whole history of the metric, once it was read before."""
    client = _client(url)
    client.get_metric_history(run, KEY)
    started = time.perf_counter()
    with charged(postmaster, writes=False) as cost:
        found = client.get_metric_history(run, KEY)
        seconds = time.perf_counter() - started
    return {**cost, "seconds": seconds, "points": len(found)}


def _client(url: str) -> Any:
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(url.replace("postgresql://", "postgresql+psycopg2://"))


def _run(url: str) -> tuple[Any, str]:
    client = _client(url)
    found = client.get_experiment_by_name("bench")
    experiment = found.experiment_id if found else client.create_experiment("bench")
    return client, client.create_run(experiment).info.run_id


PROBES = {probe.__name__: probe for probe in (log, read)}


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](**json.loads(sys.argv[2]))))
