"""`--max-bytes`: Markdown that is short enough for a comment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import click

from arc_halo.cli.invocation import Invocation
from arc_halo.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

LEAST_BYTES = 4000
"""Room for the summary and the titles."""


class Cut(TypedDict):
    """Below how many bytes to stay, and where all of it is."""

    max_bytes: int | None
    whole: str | None


UNCUT = Cut(max_bytes=None, whole=None)


def cut_option(command: F) -> F:
    """`--max-bytes`, a `Cut` in the hands of the command."""
    return click.option(
        "--max-bytes",
        "cut",
        type=click.IntRange(min=LEAST_BYTES),
        metavar="N",
        callback=_cut,
        help="Cut Markdown below so many bytes, section by section, deletions last.",
    )(command)


def _cut(context: click.Context, parameter: click.Parameter, value: int | None) -> Cut:
    return UNCUT if value is None else Cut(max_bytes=value, whole=_whole())


def check_cut(invocation: Invocation, cut: Cut) -> None:
    """Raise `UsageError` where there is nothing that could be cut."""
    if cut["max_bytes"] is not None and invocation.output != "markdown":
        raise UsageError("--max-bytes cuts Markdown", hint="add `--output markdown`")


def _whole() -> str | None:
    from arc_halo.reconcile.who import run_url

    url = run_url()
    return f"[All of it is with the run]({url})." if url else None
