"""A service to ask, and a context as a reactor gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from arc_halo.reactors.allowing import Allowance
from arc_halo.types import RunnerContext
from tests.runners.services import SECRET, Service, serving


@pytest.fixture
def service() -> Iterator[Service]:
    found = Service()
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", found.handle, methods=["POST"]),
            Route("/v1/completions", found.handle, methods=["POST"]),
        ]
    )
    with serving(app) as url:
        found.url = f"{url}/v1"
        yield found


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., RunnerContext]:
    """A context as a reactor gives it, of a project that allows this machine and one key."""

    def make(
        *,
        hosts: tuple[str, ...] = ("127.0.0.1",),
        secrets: tuple[str, ...] = ("THE_KEY",),
        value: str = SECRET,
        **values: Any,
    ) -> RunnerContext:
        allowance = Allowance(
            directory=tmp_path,
            allow_paths=(),
            hosts=hosts,
            secrets=secrets,
            environ={"THE_KEY": value},
        )
        return RunnerContext(
            model="poet@1",
            architecture={},
            find_file=allowance.find_file,
            secret=allowance.secret,
            check_url=allowance.check_url,
            tensors=lambda: iter(()),
            **{"predictors": {}, **values},
        )

    return make
