"""`arc-halo activations`: captured activations, listed, told in figures and deleted."""

from __future__ import annotations

import click

from arc_halo.cli.activations.ls import ls
from arc_halo.cli.activations.rm import rm
from arc_halo.cli.activations.show import show


@click.group("activations")
def activations() -> None:
    """Look at activations that were captured from Python.

    What one model gave for one input is a capture. In all of these CAPTURE is its id, or the
    beginning of that, 6 digits or more.

    \b
    Examples:
      arc-halo activations ls
      arc-halo activations show 3fa91c
      arc-halo activations rm 3fa91c --dry-run
    """


for _command in (ls, show, rm):
    activations.add_command(_command)
