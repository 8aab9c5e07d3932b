"""The options of commands that plan: what of the manifest is meant, and how far it may go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def selection_options(command: F) -> F:
    """`--prune`, `--target` and `--exclude`."""
    for option in reversed(
        (
            click.option(
                "--prune/--no-prune",
                default=None,
                help="Delete what left the manifest, or not.",
            ),
            click.option(
                "--target",
                "targets",
                metavar="GLOB",
                multiple=True,
                help="Only resources like this, and what they need: model/poet@1.0.0, model/*.",
            ),
            click.option(
                "--exclude",
                "excludes",
                metavar="GLOB",
                multiple=True,
                help="All but resources like this, and what needs them.",
            ),
        )
    ):
        command = option(command)
    return command


def cache_option(command: F) -> F:
    """`--no-cache`."""
    return click.option(
        "--no-cache",
        is_flag=True,
        help="Read the manifest and its files anew, even if they look as they did.",
    )(command)


def plugins_option(command: F) -> F:
    """`--plugins-from`."""
    return click.option(
        "--plugins-from",
        metavar="REF",
        help="Load the plugins that this commit lists, as it has them, and no others.",
    )(command)


def limit_options(command: F) -> F:
    """`--max-deletes` and `--allow-empty`."""
    for option in reversed(
        (
            click.option(
                "--max-deletes",
                type=click.IntRange(min=0),
                metavar="N",
                help="How many resources may be deleted; otherwise 10, or a fifth of them.",
            ),
            click.option(
                "--allow-empty",
                is_flag=True,
                help="Delete everything, if the manifest declares nothing any more.",
            ),
        )
    ):
        command = option(command)
    return command
