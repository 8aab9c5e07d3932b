"""A database to record trainings in, and what is recorded there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import arc_halo

Ask = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def halo(tmp_path: Path, database: str) -> Iterator[arc_halo.Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        yield opened


@pytest.fixture
def ask(database: str) -> Iterator[Ask]:
    with psycopg.connect(database, autocommit=True) as conn:

        def ask(text: str, *given: Any) -> list[tuple[Any, ...]]:
            cursor = conn.execute(text, given or None)
            return cursor.fetchall() if cursor.description else []

        yield ask
