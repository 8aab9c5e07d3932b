"""`--max-bytes` and `--whole`: Markdown that is short enough for a comment, and all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import click

from arc_halo.cli.invocation import Invocation
from arc_halo.errors import ArcHaloError, UsageError

F = TypeVar("F", bound=Callable[..., Any])

LEAST_BYTES = 4000
"""Room for the summary and the titles."""


class Markdown(Protocol):
    """Makes a page, cut or not."""

    def __call__(self, *, max_bytes: int | None, whole: str | None) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Below how many bytes Markdown has to stay, and which file gets all of it."""

    max_bytes: int | None = None
    file: Path | None = None

    def markdown(self, made: Markdown) -> str:
        """What is printed of a page; all of it is in the file."""
        if self.file is not None:
            _write(self.file, made(max_bytes=None, whole=None))
        return made(max_bytes=self.max_bytes, whole=_whole())


UNCUT = Cut()


def cut_options(command: F) -> F:
    """`--max-bytes` and `--whole`: a `Cut` in the hands of the command."""

    @click.option(
        "--max-bytes",
        type=click.IntRange(min=LEAST_BYTES),
        metavar="N",
        help="Cut Markdown below so many bytes, section by section, deletions last.",
    )
    @click.option(
        "--whole",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Write all of the Markdown here, whatever is cut.",
    )
    @wraps(command)
    def cutting(*args: Any, max_bytes: int | None, whole: Path | None, **given: Any) -> Any:
        invocation: Invocation = click.get_current_context().obj
        if (max_bytes is not None or whole is not None) and invocation.output != "markdown":
            raise UsageError(
                "--max-bytes and --whole are about Markdown", hint="add `--output markdown`"
            )
        return command(*args, cut=Cut(max_bytes=max_bytes, file=whole), **given)

    return cast(F, cutting)


def _write(file: Path, page: str) -> None:
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise ArcHaloError(
            f"{file}: cannot be written: {exc.strerror or exc}",
            hint="check the directory, its rights and the space on its disk",
            code="AH015",
        ) from exc


def _whole() -> str | None:
    from arc_halo.reconcile.who import run_url

    url = run_url()
    return f"[All of it is with the run]({url})." if url else None
