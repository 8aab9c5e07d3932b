"""Where a program keeps its sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from arc_halo.store.connection import translate
from arc_halo.store.rows import Connection
from arc_halo.weights.store import WeightStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a program keeps its sessions: the database, and a directory for what has to wait."""

    connect: Callable[[], Connection]
    spool_directory: Path
    weights: Callable[[], WeightStore]

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection for a moment, whose errors are ours."""
        with translate(), self.connect() as conn:
            yield conn
