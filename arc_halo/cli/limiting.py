"""`--limit` of the commands that list: how many are listed, and a word where there are more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from arc_halo.cli.invocation import Invocation

MOST = 1_000_000

Command = TypeVar("Command", bound=Callable[..., Any])


def limit_option(which: str) -> Callable[[Command], Command]:
    """The option; `which` says which rows are the first: `the newest`."""
    return click.option(
        "--limit",
        type=click.IntRange(min=1, max=MOST),
        metavar="N",
        default=50,
        show_default=True,
        help=f"At most so many, {which}.",
    )


def tell_of_more(invocation: Invocation, found: Sequence[object], limit: int) -> None:
    """Say that there are more, where one more was found than is listed."""
    if len(found) > limit:
        invocation.console.note(f"only {limit:,} are listed: `--limit` lists more")
