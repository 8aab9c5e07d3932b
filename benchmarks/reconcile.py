"""The cost of planning and applying the corpus, against the bars that this project sets itself.

    python benchmarks/reconcile.py [--quick] [--repetitions N]

Everything runs in fresh processes, against an embedded server in a temporary directory, and the
figures are medians. A process's CPU seconds are those that the kernel charges it, user and system;
the server's are those of all its backends, parallel workers and autovacuum included. Linux only.
Exits with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from corpus import FILES, MODELS, REACTORS
from reconcile_site import Site, site
from rows import Row, show

CSAFE_RATIO, PLAN_SECONDS, PEAK_MB = 3.0, 3.0, 250


def validation_seconds(large: Site, repetitions: int) -> tuple[list[Row], float]:
    """Parsing and validation against CSafeLoader alone; also the seconds that ours takes."""
    pairs = [(large.probe("csafe"), large.probe("validation")) for _ in range(repetitions)]
    alone = median(csafe["as_it_comes"] for csafe, _ in pairs)
    uncollected = median(csafe["uncollected"] for csafe, _ in pairs)
    load = median(ours["load"] for _, ours in pairs)
    check = median(ours["validate"] for _, ours in pairs)
    ratio = (load + check) / alone
    rows = [
        Row(
            what="parsing + validation, times CSafeLoader alone",
            figure=f"{ratio:.2f}  ({load:.2f} + {check:.2f} s / {alone:.2f} s)",
            bar=f"<= {CSAFE_RATIO:g}",
            is_met=ratio <= CSAFE_RATIO,
        ),
        Row(
            what="the same, CSafeLoader's garbage collector off",
            figure=f"{(load + check) / uncollected:.2f}  (/ {uncollected:.2f} s)",
        ),
    ]
    return rows, load + check


def plan_rows(large: Site, repetitions: int, validation: float) -> Iterator[Row]:
    """A no-op `arc-halo plan`, from the start of its process to the end."""
    runs = [large.command("plan", "--no-cache", "--detailed-exitcode") for _ in range(repetitions)]
    client = median(run.client for run in runs)
    server = median(run.server for run in runs)
    beyond = client + server - validation
    yield Row(
        what="no-op plan beyond parsing + validation, CPU-s",
        figure=f"{beyond:.2f}  (client {client - validation:.2f}, server {server:.2f})",
        bar=f"<= {PLAN_SECONDS:g}",
        is_met=beyond <= PLAN_SECONDS,
    )
    peak = median(run.peak_mb for run in runs)
    yield Row(
        what="no-op plan, peak RSS, MB",
        figure=f"{peak:.0f}",
        bar=f"<= {PEAK_MB}",
        is_met=peak <= PEAK_MB,
    )
    wall = median(run.wall for run in runs)
    yield Row(
        what="no-op plan, all of it",
        figure=f"{client + server:.2f} CPU-s, {wall:.2f} s on the clock",
    )


def statement_row(small: Site, large: Site) -> Row:
    """How many statements a no-op plan takes for a tenth of the corpus, and for all of it."""
    few, many = (len(each.probe("statements")["statements"]) for each in (small, large))
    return Row(
        what=f"SQL statements, no-op plan of {small.size:,} and {large.size:,}",
        figure=f"{few} and {many}",
        bar="equal",
        is_met=few == many,
    )


def apply_row(large: Site) -> Row:
    """The first apply, of which there is only one: all resources are new."""
    run = large.command("apply")
    return Row(
        what=f"apply of {large.size:,} new resources",
        figure=f"{run.cpu:.2f} CPU-s (client {run.client:.2f}, server {run.server:.2f}), "
        f"{run.wall:.1f} s on the clock, {run.peak_mb:.0f} MB",
    )


def measure(root: Path, scale: int, repetitions: int) -> Iterator[Row]:
    """All rows for the corpus divided by `scale`, in an order in which a reader wants them."""
    sizes = [(MODELS // s, REACTORS // s, FILES // s) for s in (10 * scale, scale)]
    with site(root / "small", *sizes[0]) as small, site(root / "large", *sizes[1]) as large:
        rows, validation = validation_seconds(large, repetitions)
        yield from rows
        applied = apply_row(large)
        small.command("apply")
        yield from plan_rows(large, repetitions, validation)
        yield statement_row(small, large)
        yield applied


def main() -> int:
    """Print the rows as they come; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description="The cost of planning and applying the corpus.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the corpus")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="arc-halo-bench-") as root:
        return show(measure(Path(root), 10 if asked.quick else 1, asked.repetitions))


if __name__ == "__main__":
    sys.exit(main())
