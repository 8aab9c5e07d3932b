"""What long work tells of itself; the command line shows it, the API may ignore it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Told of each step while it runs. Called from one thread; `Advance` from several."""

    def task(self, label: str, size_bytes: int) -> AbstractContextManager[Advance]:
        """A context manager that gives an `Advance` for a task of `size_bytes` raw bytes."""
        ...

    def done(self, line: str) -> None:
        """One finished step, in a line."""
        ...


class Silent:
    """Tells nobody."""

    def task(self, label: str, size_bytes: int) -> AbstractContextManager[Advance]:
        return _silent_task()

    def done(self, line: str) -> None:
        pass


@contextmanager
def _silent_task() -> Iterator[Advance]:
    yield lambda size_bytes: None
