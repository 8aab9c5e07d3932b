"""The tensor store against the bars that this project sets itself.

    python benchmarks/tensors.py [--quick] [--only NAME] [--repetitions N]

Against an embedded server in a temporary directory. What is compared runs in turns, each in a
fresh process; a ratio is the median over the turns, and their least and greatest follow it. In
brackets are the CPU seconds, the client's + the server's, of each side. Linux only. Exits with 1
when a bar is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import tensor_memory
import tensor_sizes
import tensor_speed
from rows import Row, show
from tensor_site import Site, site


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured."""

    bytes: int
    small_tensors: int
    memory_bytes: int
    steps: int
    repetitions: int


FULL = Scale(bytes=192 * 2**20, small_tensors=10_000, memory_bytes=2**30, steps=100, repetitions=5)
QUICK = Scale(bytes=64 * 2**20, small_tensors=2_000, memory_bytes=2**27, steps=40, repetitions=5)

Part = Callable[[Site, Scale], Iterator[Row]]

PARTS: dict[str, Part] = {
    "raw-ingest": lambda at, s: tensor_speed.raw_ingest(at, s.bytes, s.repetitions),
    "planes-ingest": lambda at, s: tensor_speed.planes_ingest(at, s.bytes, s.repetitions),
    "load": lambda at, s: tensor_speed.loads(at, s.bytes, s.repetitions),
    "second": lambda at, s: tensor_speed.second_import(at, s.bytes, s.repetitions),
    "zipnn": lambda at, s: tensor_sizes.against_zipnn(at),
    "delta": lambda at, s: tensor_sizes.against_xor(at, s.steps),
    "memory": lambda at, s: tensor_memory.memory(at, s.memory_bytes),
    "small": lambda at, s: tensor_speed.small_tensors(at, s.small_tensors, s.repetitions),
}


def measure(scale: Scale, names: list[str]) -> Iterator[Row]:
    """The rows of the parts named, on a server of their own."""
    with tempfile.TemporaryDirectory(prefix="arc-halo-bench-") as root, site(Path(root)) as at:
        for name in names:
            yield from PARTS[name](at, scale)


def main() -> int:
    """Print the rows as they come; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description="The tensor store against its bars.")
    parser.add_argument("--quick", action="store_true", help="a part of the data")
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given repeatedly")
    parser.add_argument("--repetitions", type=int, metavar="N")
    asked = parser.parse_args()
    scale = QUICK if asked.quick else FULL
    if asked.repetitions:
        scale = dataclasses.replace(scale, repetitions=asked.repetitions)
    return show(measure(scale, asked.only or list(PARTS)))


if __name__ == "__main__":
    sys.exit(main())
