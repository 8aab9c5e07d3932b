"""All printing: results to stdout, what only people read to stderr, colours on terminals only."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import click

from arc_halo.errors import ArcHaloError, ManifestError, Problem

if TYPE_CHECKING:
    from arc_halo.reconcile.report import Line


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    fg: str | None = None
    bold: bool | None = None
    dim: bool | None = None


_LOOKS = {
    "create": _Look(fg="green"),
    "update": _Look(fg="yellow"),
    "delete": _Look(fg="red"),
    "warn": _Look(fg="yellow"),
    "error": _Look(fg="red", bold=True),
    "dim": _Look(dim=True),
    "bold": _Look(bold=True),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a line, on a ground of that colour: `#4393c3`."""

    text: str
    ground: str | None = None


SHOWN_PROBLEMS = 50
DARK = 400
"""Sums of red, green and blue below this want white letters."""
PLAIN_PROGRESS_SECONDS = 5.0


def printable(text: str, *, one_line: bool = False) -> str:
    """`text` with its control characters written out: names in files come from anywhere."""
    return (_CONTROLS_AND_BREAKS if one_line else _CONTROLS).sub(_escaped, text)


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROLS_AND_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class Console:
    """Where a command writes. `quiet` drops notes and progress, never results or errors."""

    def __init__(self, *, colour: bool | None = None, quiet: bool = False) -> None:
        self._colour = colour
        self.quiet = quiet

    def print(self, text: str, style: str = "plain") -> None:
        """One line, or several, of the result."""
        click.echo(self._paint(text, style, sys.stdout), color=True)

    def pieces(self, lines: Iterable[Sequence[Piece]]) -> None:
        """Lines of the result, their pieces on coloured grounds where there are colours."""
        for line in lines:
            if self.is_coloured:
                self._print_grounds(line)
            else:
                self.print("".join(piece.text for piece in line).rstrip())

    @property
    def is_coloured(self) -> bool:
        """Whether results may have colours."""
        return self._is_coloured(sys.stdout)

    def note(self, text: str, style: str = "dim") -> None:
        """Something only people need to know."""
        if not self.quiet:
            click.echo(self._paint(text, style, sys.stderr), err=True, color=True)

    def lines(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self.print(line.text, line.style)

    def error(self, error: ArcHaloError) -> None:
        """An error as a compiler would print it."""
        if isinstance(error, ManifestError):
            self._problems(error)
            return
        self._complain(f"error[{error.error_code}]: {error.message}", "error")
        if error.hint:
            self._complain(f"   hint: {error.hint}", "dim")

    @property
    def is_interactive(self) -> bool:
        """Whether somebody can be asked."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def confirm(self, question: str) -> bool:
        return click.confirm(question, default=False, err=True)

    @contextmanager
    def task(self, label: str, size_bytes: int) -> Iterator[Callable[[int], None]]:
        """Progress of one task: a bar on a terminal, a line now and then elsewhere."""
        if self.quiet:
            yield lambda size: None
            return
        with self._progress(label, size_bytes) as advance:
            yield advance

    def done(self, line: str) -> None:
        self.note(line)

    def _print_grounds(self, line: Sequence[Piece]) -> None:
        from rich.color import Color
        from rich.console import Console as RichConsole
        from rich.style import Style
        from rich.text import Text

        text = Text(no_wrap=True)
        for piece in line:
            style = Style()
            if piece.ground is not None:
                is_dark = sum(Color.parse(piece.ground).get_truecolor()) < DARK
                style = Style(bgcolor=piece.ground, color="white" if is_dark else "black")
            text.append(printable(piece.text, one_line=True), style)
        RichConsole(file=sys.stdout, force_terminal=True).print(text, soft_wrap=True)

    def _progress(
        self, label: str, size_bytes: int
    ) -> AbstractContextManager[Callable[[int], None]]:
        if sys.stderr.isatty():
            return _bar(label, size_bytes)
        return _plain(label, size_bytes, self.note)

    def _problems(self, error: ManifestError) -> None:
        for problem in error.problems[:SHOWN_PROBLEMS]:
            self._problem(problem)
        if len(error.problems) > SHOWN_PROBLEMS:
            self._complain(f"… and {len(error.problems) - SHOWN_PROBLEMS} more", "error")
        files = len({problem.file for problem in error.problems})
        count = len(error.problems)
        self._complain(
            f"{count} error{'s' if count > 1 else ''} in {files} file{'s' if files > 1 else ''}",
            "bold",
        )

    def _problem(self, problem: Problem) -> None:
        place = f"{problem.file}:{problem.line}:{problem.column}" if problem.line else problem.file
        self._complain(f"{place}: error[{problem.code}]: {problem.message}", "error")
        if problem.snippet is not None and problem.line:
            number = f"{problem.line:>7} | "
            self._complain(number + problem.snippet, "plain")
            indent = " " * 7 + " | " + " " * (problem.column - 1)
            self._complain(indent + "^" * max(1, problem.length), "error")
        if problem.hint:
            self._complain(f"   hint: {problem.hint}", "dim")

    def _complain(self, text: str, style: str) -> None:
        click.echo(self._paint(text, style, sys.stderr), err=True, color=True)

    def _paint(self, text: str, style: str, stream: TextIO) -> str:
        text = printable(text)
        if style == "plain" or not self._is_coloured(stream):
            return text
        look = _LOOKS[style]
        return click.style(text, fg=look.fg, bold=look.bold, dim=look.dim)

    def _is_coloured(self, stream: TextIO) -> bool:
        if self._colour is not None:
            return self._colour
        if os.environ.get("NO_COLOR"):
            return False
        return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


@contextmanager
def _bar(label: str, size_bytes: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=RichConsole(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=size_bytes or None)
        yield lambda size: progress.advance(task, size)


@contextmanager
def _plain(
    label: str, size_bytes: int, note: Callable[[str], None]
) -> Iterator[Callable[[int], None]]:
    from arc_halo.sizes import format_size

    done = 0
    told_at = time.monotonic()

    def advance(size: int) -> None:
        nonlocal done, told_at
        done += size
        if time.monotonic() - told_at >= PLAIN_PROGRESS_SECONDS:
            told_at = time.monotonic()
            of = f" of {format_size(size_bytes)}" if size_bytes else ""
            note(f"{label}: {format_size(done)}{of}")

    yield advance
