"""Trackio's side of `training.py`, run by the Python that has it: `training.py --trackio PYTHON`.

    PYTHON training_trackio.py ARGUMENTS-AS-JSON

prints one JSON object. It writes to a directory, which is SQLite's.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from typing import Any


def log(*, directory: str, points: int) -> dict[str, Any]:
    """A run that logs a point a step, until all are stored; what that took, and how many are."""
    os.environ |= {"TRACKIO_DIR": directory, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import trackio

    # It prints where the dashboard is.
    with contextlib.redirect_stdout(io.StringIO()):
        trackio.init(project="bench", embed=False)
        started, cpu = time.perf_counter(), time.process_time()
        for step in range(points):
            trackio.log({"loss": 1 / (1 + step)}, step=step)
        trackio.finish()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "client": cpu, "server": 0.0, "points": _stored(directory)}


def _stored(directory: str) -> int:
    import sqlite3
    from pathlib import Path

    found = 0
    for path in Path(directory).rglob("*.db"):
        with sqlite3.connect(path) as conn:
            found += conn.execute("SELECT count(*) FROM metrics").fetchone()[0]
    return found


if __name__ == "__main__":
    print(json.dumps(log(**json.loads(sys.argv[1]))))
