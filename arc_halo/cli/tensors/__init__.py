"""`arc-halo tensors`: what is stored, what it takes, and whether it is whole."""

from __future__ import annotations

import click

from arc_halo.cli.tensors.du import du
from arc_halo.cli.tensors.gc import gc
from arc_halo.cli.tensors.ls import ls
from arc_halo.cli.tensors.recode import recode
from arc_halo.cli.tensors.show import show
from arc_halo.cli.tensors.verify import verify


@click.group("tensors")
def tensors() -> None:
    """Look at stored tensors and keep them well.

    \b
    Examples:
      arc-halo tensors ls story
      arc-halo tensors du
      arc-halo tensors verify
      arc-halo tensors gc --dry-run
    """


for _command in (ls, show, du, verify, recode, gc):
    tensors.add_command(_command)
