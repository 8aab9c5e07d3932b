"""Training sessions against the bars that this project sets itself.

    python benchmarks/training.py [--mlflow PYTHON] [--trackio PYTHON] [--only NAME]
        [--quick] [--repetitions N]

Against an embedded server in a temporary directory, which MLflow stores in too. What is compared
runs in turns, each in a fresh process; a ratio is the median over the turns, and their least and
greatest follow it. In brackets are the CPU seconds, the client's + the server's, of each side.
Linux only. Exits with 1 when a bar is missed, and without MLflow or Trackio.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import training_checkpoints
import training_reading
import training_writing
from rows import Row, show
from tensor_site import site
from training_site import Grounds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured."""

    written_points: int
    history_points: int
    long_points: int
    checkpoint_mebibytes: int
    repetitions: int


FULL = Scale(
    written_points=100_000,
    history_points=100_000,
    long_points=1_000_000,
    checkpoint_mebibytes=256,
    repetitions=5,
)
QUICK = Scale(
    written_points=20_000,
    history_points=20_000,
    long_points=100_000,
    checkpoint_mebibytes=64,
    repetitions=3,
)

Part = Callable[[Grounds, Scale], Iterator[Row]]

PARTS: dict[str, Part] = {
    "mlflow": lambda on, s: training_writing.against_mlflow(on, s.written_points, s.repetitions),
    "trackio": lambda on, s: training_writing.against_trackio(on, s.written_points, s.repetitions),
    "copy": lambda on, s: training_writing.against_copy(on, s.written_points, s.repetitions),
    "caller": lambda on, s: training_writing.caller(on, s.written_points, s.repetitions),
    "history": lambda on, s: training_reading.history(on, s.history_points, s.repetitions),
    "envelope": lambda on, s: training_reading.envelope(on, s.long_points, s.repetitions),
    "checkpoint": lambda on, s: training_checkpoints.unchanged(on, s.checkpoint_mebibytes),
    "size": lambda on, s: training_reading.size(on, s.long_points),
}
"""Each has a database of its own, on one server."""


def measure(scale: Scale, names: list[str], **peers: str | None) -> Iterator[Row]:
    """The rows of the parts named."""
    with tempfile.TemporaryDirectory(prefix="arc-halo-bench-") as root, site(Path(root)) as at:
        for name in names:
            url = at.create_database(f"training_{name}")
            yield from PARTS[name](Grounds(at=at, url=url, **peers), scale)


def main() -> int:
    """Print the rows as they come; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description="Training sessions against their bars.")
    parser.add_argument("--mlflow", metavar="PYTHON", help="a Python that has MLflow and psycopg2")
    parser.add_argument("--trackio", metavar="PYTHON", help="a Python that has Trackio")
    parser.add_argument("--quick", action="store_true", help="a part of the data")
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given repeatedly")
    parser.add_argument("--repetitions", type=int, metavar="N")
    asked = parser.parse_args()
    scale = QUICK if asked.quick else FULL
    if asked.repetitions:
        scale = dataclasses.replace(scale, repetitions=asked.repetitions)
    return show(
        measure(scale, asked.only or list(PARTS), mlflow=asked.mlflow, trackio=asked.trackio)
    )


if __name__ == "__main__":
    sys.exit(main())
