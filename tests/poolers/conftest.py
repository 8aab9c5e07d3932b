"""The databases of these tests are reached through a pooler in transaction mode."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.reconcile.conftest import (  # noqa: F401  # what runs here needs them
    dump,
    llama,
    make_workshop,
    open_workshop,
    workshop,
)


@pytest.fixture(scope="session")
def create_database(
    create_pooled_database: Callable[[str | None], str],
) -> Callable[[str | None], str]:
    return create_pooled_database


@pytest.fixture
def direct_database(database: str, server_url: str) -> str:
    """The URL of the test's database, past the pooler."""
    return urlunsplit(urlsplit(server_url)._replace(path=urlsplit(database).path))
