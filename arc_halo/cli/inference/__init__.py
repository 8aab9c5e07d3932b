"""`arc-halo inference`: models at work, and what their requests took."""

from __future__ import annotations

import click

from arc_halo.cli.inference.ls import ls
from arc_halo.cli.inference.prune import prune
from arc_halo.cli.inference.rm import rm
from arc_halo.cli.inference.show import show


@click.group("inference")
def inference() -> None:
    """Look at inference sessions: models at work, and what their requests took.

    SESSION is a session's id, or the beginning of it, 6 digits or more.

    \b
    Examples:
      arc-halo inference ls
      arc-halo inference show 0f6e2a
      arc-halo inference prune --older-than 30d
    """


for _command in (ls, show, rm, prune):
    inference.add_command(_command)
