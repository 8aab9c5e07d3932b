"""A project that is applied, and a server of its reactors, over real sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from arc_halo.project import Project
from arc_halo.serving import running
from arc_halo.serving.app import Limits, Service, application
from arc_halo.serving.keys import digest_of, new_key
from arc_halo.store import keys
from arc_halo.store.keys import ApiKey
from tests.runners.services import serving
from tests.serving.projects import SECRET, write_project


@dataclass(kw_only=True)
class Site:
    """A server, its project, a key that is good, and what its operator was told."""

    project: Project
    service: Service
    url: str
    key: str
    notes: list[str] = field(default_factory=list)

    def client(self, **options: Any) -> openai.OpenAI:
        given = {"api_key": self.key, "base_url": f"{self.url}/v1", "max_retries": 0, **options}
        return openai.OpenAI(**given)

    def post(self, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        return httpx.post(f"{self.url}{path}", headers=headers, timeout=30, **options)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.key}"})

    def make_key(self, name: str, **values: Any) -> tuple[str, ApiKey]:
        key = new_key()
        with self.project.connection() as conn:
            made = keys.create(
                conn, name, values.get("tenant", ""), digest_of(key), values.get("expires")
            )
        assert made is not None
        return key, made

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.project.connection() as conn:
            return conn.execute(query.encode()).fetchall()


@pytest.fixture
def applied(tmp_path: Path, database: str) -> Iterator[Project]:
    """The project, its reactors in the database."""
    directory = tmp_path / "project"
    write_project(directory)
    environ = {**os.environ, "SERVING_TEST_KEY": SECRET}
    with Project(directory, database_url=database, environ=environ) as project:
        project.apply(project.plan())
        yield project


@pytest.fixture
def make_site(applied: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts servers of the project."""
    monkeypatch.setenv("SERVING_TEST_KEY", SECRET)
    with ExitStack() as stack:

        def make(*, has_keys: bool = True, limits: Limits | None = None) -> Site:
            notes: list[str] = []
            found = stack.enter_context(running.opened(applied, (), notes.append))
            service = running.service_of(
                applied, found, limits=limits or Limits(), has_keys=has_keys, note=notes.append
            )
            url = stack.enter_context(serving(application(service)))
            site = Site(project=applied, service=service, url=url, key="", notes=notes)
            site.key, _ = site.make_key("tests", tenant="acme")
            return site

        yield make


@pytest.fixture
def site(make_site: Any) -> Site:
    found = make_site()
    assert isinstance(found, Site)
    return found
