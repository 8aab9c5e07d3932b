"""`arc-halo training`: what training recorded, looked at, compared, drawn and taken elsewhere."""

from __future__ import annotations

import click

from arc_halo.cli.training.checkpoints import checkpoints
from arc_halo.cli.training.compare import compare
from arc_halo.cli.training.export import export
from arc_halo.cli.training.ls import ls
from arc_halo.cli.training.plot import plot
from arc_halo.cli.training.prune import prune
from arc_halo.cli.training.rm import rm
from arc_halo.cli.training.show import show
from arc_halo.cli.training.sync import sync


@click.group("training")
def training() -> None:
    """Look at training sessions, their metrics and their checkpoints.

    In all of these SESSION is a session's name (of several the newest), its id, or the beginning
    of its id, 6 digits or more.

    \b
    Examples:
      arc-halo training ls
      arc-halo training show night-3
      arc-halo training compare night-2 night-3
      arc-halo training plot night-2 night-3
      arc-halo training export night-3 -o night-3.csv
      arc-halo training checkpoints ls night-3
      arc-halo training prune night-3 --keep-last 3
      arc-halo training rm night-1
    """


for _command in (ls, show, compare, plot, export, checkpoints, prune, rm, sync):
    training.add_command(_command)
