"""What `training.py` measures of ours, each in a fresh process.

    python training_probes.py PROBE ARGUMENTS-AS-JSON

prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from server_cpu import charged

import arc_halo


def read(*, url: str, directory: str, session: str, key: str, postmaster: int) -> dict[str, Any]:
    """A whole series as arrays, once it was read before."""
    with arc_halo.connect(url, project=Path(directory)) as halo:
        recorded = halo.training.get(session)
        recorded.series(key)
        started = time.perf_counter()
        with charged(postmaster, writes=False) as cost:
            found = recorded.series(key)
            seconds = time.perf_counter() - started
        return {**cost, "seconds": seconds, "points": len(found)}


def envelope(
    *, url: str, directory: str, session: str, key: str, buckets: int, postmaster: int
) -> dict[str, Any]:
    """An envelope, and how many of its buckets have not the extremes that their points have."""
    import numpy as np

    with arc_halo.connect(url, project=Path(directory)) as halo:
        recorded = halo.training.get(session)
        with charged(postmaster, writes=False) as cost:
            found = recorded.envelope(key, buckets=buckets)
        whole = recorded.series(key)
    starts = np.searchsorted(whole.steps, found.first_steps)
    finite = np.isfinite(whole.values)
    lows = np.minimum.reduceat(np.where(finite, whole.values, np.inf), starts)
    highs = np.maximum.reduceat(np.where(finite, whole.values, -np.inf), starts)
    wrong = int(((lows != found.lows) | (highs != found.highs)).sum())
    counted = int(found.counts.sum()) == len(whole)
    return {**cost, "buckets": len(found), "wrong": wrong if counted else len(found)}


PROBES = {probe.__name__: probe for probe in (read, envelope)}


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](**json.loads(sys.argv[2]))))
