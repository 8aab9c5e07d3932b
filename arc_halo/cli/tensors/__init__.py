"""`arc-halo tensors`: what is stored, what it takes, and whether it is whole."""

from __future__ import annotations

import click

from arc_halo.cli.tensors.du import du
from arc_halo.cli.tensors.ls import ls
from arc_halo.cli.tensors.recode import recode
from arc_halo.cli.tensors.show import show


@click.group("tensors")
def tensors() -> None:
    """Look at stored tensors: list, measure, recode.

    \b
    Examples:
      arc-halo tensors ls story
      arc-halo tensors du
      arc-halo tensors recode --codec planes
    """


for _command in (ls, show, du, recode):
    tensors.add_command(_command)
