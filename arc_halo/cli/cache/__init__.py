"""`arc-halo cache`: what the KV cache holds, and how it is kept in order."""

from __future__ import annotations

import click

from arc_halo.cli.cache.evict import clear, evict
from arc_halo.cli.cache.ls import ls
from arc_halo.cli.cache.stats import stats
from arc_halo.cli.cache.verify import verify


@click.group("cache")
def cache() -> None:
    """Look at the KV cache: keys and values of prompts, kept for the next that begins alike.

    Where MODEL is asked for it is a name, name@version, name:alias, or the beginning of a root
    of weights in hex, 6 digits or more; of a registered model any of its roots.

    \b
    Examples:
      arc-halo cache stats
      arc-halo cache ls --tenant acme
      arc-halo cache evict --idle 7d --dry-run
      arc-halo cache verify --sample 1000
      arc-halo cache clear
    """


for _command in (stats, ls, evict, clear, verify):
    cache.add_command(_command)
