"""A store of weights on a database of its own, with all built-in codecs."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from arc_halo.plugins import PluginManager
from arc_halo.store.connection import pool
from arc_halo.store.rows import Pool
from arc_halo.weights.store import WeightStore

Contents = Mapping[str, tuple[str, tuple[int, ...], bytes]]


@pytest.fixture
def open_pool(database: str) -> Iterator[Pool]:
    with pool(database, 8) as opened:
        yield opened


@pytest.fixture
def make_store(open_pool: Pool) -> Callable[..., WeightStore]:
    """A store with settings other than the usual."""
    codecs = {name: provided.item for name, provided in PluginManager().codecs.items()}

    def made(**settings: Any) -> WeightStore:
        return WeightStore(**{"pool": open_pool, "codecs": codecs, **settings})

    return made


@pytest.fixture
def store(make_store: Callable[..., WeightStore]) -> WeightStore:
    return make_store()


@pytest.fixture
def tamper(database: str) -> Callable[..., int]:
    """Runs a statement with keys and triggers off, as a damaged disk would; rows changed."""

    def run(query: str, *params: object) -> int:
        with psycopg.connect(database) as conn:
            conn.execute("SET LOCAL session_replication_role = replica")
            return conn.execute(query, params).rowcount

    return run


@pytest.fixture
def sql(database: str) -> Callable[..., list[tuple[Any, ...]]]:
    def run(query: str, *params: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(database) as conn:
            return conn.execute(query, params).fetchall()

    return run


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a safetensors file by hand, from dtype, shape and raw bytes."""

    def written(
        contents: Contents, metadata: Mapping[str, str] | None = None, file: str = "m.safetensors"
    ) -> Path:
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        body = b""
        for name, (dtype, shape, raw) in contents.items():
            offsets = [len(body), len(body) + len(raw)]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
            body += raw
        text = json.dumps(header).encode()
        path = tmp_path / file
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)
        return path

    return written
