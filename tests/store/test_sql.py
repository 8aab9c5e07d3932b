"""Every SQL constant of the store is planned by a real server against the migrated schema."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest

import arc_halo.store
from arc_halo.store.connection import Connection

NOT_PLANNED = {
    "builds.STEP": "SET has no plan",
    "fusions.CLAIM_SETTINGS": "SET has no plan",
    "kv_cache.KEEP_READERS_OUT": "LOCK has no plan",
    "training_reading.PLAN_SETTINGS": "SET has no plan",
}
"""Texts that EXPLAIN cannot take, each with the reason; a test runs every one of them."""

VERBS = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|MERGE|SET|LOCK|CREATE|COMMENT|VALUES)\b")
PLACEHOLDER = re.compile(r"%\((\w+)\)[sbt]")


def constants() -> Iterator[tuple[str, str]]:
    for module in pkgutil.iter_modules(arc_halo.store.__path__):
        loaded = importlib.import_module(f"arc_halo.store.{module.name}")
        for name, value in vars(loaded).items():
            if name.isupper() and isinstance(value, str) and VERBS.match(value):
                yield f"{module.name}.{name}", value


PLANNED = [pytest.param(sql, id=name) for name, sql in constants() if name not in NOT_PLANNED]


def test_the_constants_are_found() -> None:
    found = dict(constants())
    assert len(found) > 80
    assert found.keys() >= NOT_PLANNED.keys()
    assert {name.partition(".")[0] for name in found} >= {
        "builds", "chunks", "models", "projects", "reactors", "strategies",
    }  # fmt: skip


@pytest.mark.parametrize("sql", PLANNED)
def test_a_constant_fits_the_schema(conn: Connection, sql: str) -> None:
    names = list(dict.fromkeys(PLACEHOLDER.findall(sql)))
    numbered = PLACEHOLDER.sub(lambda m: f"${names.index(m[1]) + 1}", sql).replace("%%", "%")
    assert "%(" not in numbered
    # PostgreSQL 15 has no generic plans to show; preparing checks every name and type there.
    how = b"EXPLAIN (GENERIC_PLAN) " if conn.info.server_version >= 160000 else b"PREPARE p AS "
    result = conn.pgconn.exec_(how + numbered.encode())
    assert result.error_message == b"", result.error_message.decode()


@pytest.mark.parametrize("name", NOT_PLANNED)
def test_what_cannot_be_planned_runs(conn: Connection, name: str) -> None:
    conn.execute(dict(constants())[name].encode())
