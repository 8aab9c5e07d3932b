"""The KV cache, and sessions, against the bars that this project sets itself.

    python benchmarks/inference.py [--only NAME] [--quick] [--repetitions N]

Against an embedded server in a temporary directory. What is compared runs in turns, each in a
fresh process; a ratio is the median over the turns, and their least and greatest follow it. `redis`
needs redis-server, redis and hiredis; `ttft` needs torch and transformers. Linux only. Exits with 1
when a bar is missed, and without what a part needs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import inference_blocks
import inference_sessions
import inference_ttft
from rows import Row, show
from tensor_site import Site, site

Part = Callable[[Site, str, bool, int], Iterator[Row]]

PARTS: dict[str, Part] = {
    "redis": lambda at, url, quick, n: inference_blocks.against_redis(at, url, n),
    "match": lambda at, url, quick, n: inference_blocks.match(
        at, url, 100_000 if quick else 1_000_000, n
    ),
    "ttft": inference_ttft.ttft,
    "sessions": lambda at, url, quick, n: inference_sessions.sessions(
        at, url, 10_000 if quick else 100_000
    ),
}
"""Each has a database of its own, on one server."""


def measure(names: list[str], *, quick: bool, repetitions: int) -> Iterator[Row]:
    """The rows of the parts named."""
    with tempfile.TemporaryDirectory(prefix="arc-halo-bench-") as root, site(Path(root)) as at:
        for name in names:
            url = at.create_database(f"inference_{name}")
            yield from PARTS[name](at, url, quick, repetitions)


def main() -> int:
    """Print the rows as they come; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description="The KV cache and sessions against their bars.")
    parser.add_argument("--quick", action="store_true", help="a part of the data")
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given repeatedly")
    parser.add_argument("--repetitions", type=int, metavar="N", default=5)
    asked = parser.parse_args()
    return show(
        measure(asked.only or list(PARTS), quick=asked.quick, repetitions=asked.repetitions)
    )


if __name__ == "__main__":
    sys.exit(main())
