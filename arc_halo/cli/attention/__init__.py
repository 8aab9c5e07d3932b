"""`arc-halo attention`: captured attention, listed, looked at and drawn."""

from __future__ import annotations

import click

from arc_halo.cli.attention.ls import ls
from arc_halo.cli.attention.rm import rm
from arc_halo.cli.attention.show import show


@click.group("attention")
def attention() -> None:
    """Look at attention that was captured from Python.

    In all of these CAPTURE is a capture's id, the beginning of it, 6 digits or more, or its label,
    of several the newest.

    \b
    Examples:
      arc-halo attention ls
      arc-halo attention show prompt-1
      arc-halo attention show prompt-1 --layer 3 --head 5 --svg head.svg
      arc-halo attention rm prompt-1
    """


for _command in (ls, show, rm):
    attention.add_command(_command)
