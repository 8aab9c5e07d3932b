"""`arc-halo training`: what training recorded, looked at, compared, drawn and taken elsewhere."""

from __future__ import annotations

import click

from arc_halo.cli.training.compare import compare
from arc_halo.cli.training.export import export
from arc_halo.cli.training.ls import ls
from arc_halo.cli.training.plot import plot
from arc_halo.cli.training.show import show


@click.group("training")
def training() -> None:
    """Look at training sessions and their metrics.

    In all of these SESSION is a session's name (of several the newest), its id, or the beginning
    of its id, 6 digits or more.

    \b
    Examples:
      arc-halo training ls
      arc-halo training show night-3
      arc-halo training compare night-2 night-3
      arc-halo training plot night-2 night-3
      arc-halo training export night-3 -o night-3.csv
    """


for _command in (ls, show, compare, plot, export):
    training.add_command(_command)
