"""`arc-halo watch`: reconcile continuously."""

from __future__ import annotations

import json
import math
import signal
import threading
from typing import TYPE_CHECKING, Any

import click

from arc_halo.cli.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Callable

    from arc_halo.types import JsonObject

TRY_AGAIN = 1
SHORTEST_SECONDS = 1
LONGEST_SECONDS = 24 * 60 * 60


class Seconds(click.FloatRange):
    """A number in the range, which NaN is not, though no comparison says so."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return seconds


@click.command("watch")
@click.option(
    "--interval",
    type=Seconds(min=SHORTEST_SECONDS, max=LONGEST_SECONDS),
    default=60.0,
    metavar="SECONDS",
    help="How long from one comparison to the next, 1 second to a day; 60 if not said.",
)
@click.option("--prune/--no-prune", default=None, help="Delete what left the manifest, or not.")
@click.option(
    "--max-deletes",
    type=click.IntRange(min=0),
    metavar="N",
    help="How many resources may be deleted at once; otherwise 10, or a fifth of them.",
)
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--no-apply", is_flag=True, help="Tell what would change, and change nothing.")
@click.option("--once", is_flag=True, help="Once only; exit with 1 unless all is as declared then.")
@click.pass_context
def watch(
    context: click.Context,
    interval: float,
    prune: bool | None,
    max_deletes: int | None,
    yes: bool,
    no_apply: bool,
    once: bool,
) -> None:
    """Keep the database as the manifest says: compare and apply, again and again.

    Every tick is told as one line of JSON on stdout: unchanged, applied, held, blocked or failed.
    The manifest is read anew when it changes. One that was rolled back is not applied again until
    it is another one. SIGTERM and Ctrl-C let the running apply finish, and exit with 0.

    \b
    Examples:
      arc-halo watch
      arc-halo watch --interval 300 --prune --yes --max-deletes 5
      arc-halo watch --once --no-apply
    """
    invocation: Invocation = context.obj
    from arc_halo.watching import Watch, Watched

    watched = Watched(prune=prune, may_delete=yes, max_deletes=max_deletes, applies=not no_apply)
    watching = Watch(invocation.open, _printer(invocation), watched)
    # The embedded server stays up from tick to tick.
    with invocation.open() as held:
        held.keep_open()
        if once:
            if watching.tick() not in ("unchanged", "applied"):
                context.exit(TRY_AGAIN)
            return
        watching.run(interval, _stopping())


def _printer(invocation: Invocation) -> Callable[[JsonObject], None]:
    def tell(event: JsonObject) -> None:
        invocation.console.print(json.dumps(event, ensure_ascii=False))

    return tell


def _stopping() -> threading.Event:
    """Set by SIGTERM and Ctrl-C; the second of them ends the program at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return stop
