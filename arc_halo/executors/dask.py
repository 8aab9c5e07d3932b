"""The executor `dask`: workers of a Dask cluster, on this machine or on others (extra `dask`)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from arc_halo.errors import InvalidInputError, PluginError
from arc_halo.hookspecs import hookimpl
from arc_halo.types import WorkExecutor

CONNECT_SECONDS = 10


@hookimpl
def arc_halo_executors() -> Iterator[WorkExecutor]:
    yield WorkExecutor(
        name="dask",
        version=1,
        summary="a Dask cluster: dask://SCHEDULER:8786",
        open=open_dask,
        is_remote=True,
    )


@contextmanager
def open_dask(address: str | None, workers: int) -> Iterator[Executor]:
    """The cluster whose scheduler listens at `address`, HOST:PORT."""
    if address is None:
        raise InvalidInputError(
            "the executor 'dask' needs the address of a scheduler",
            hint="write dask://HOST:8786; `dask scheduler` starts one",
            code="AH006",
        )
    try:
        from distributed import Client
    except ImportError as exc:
        raise PluginError(
            "the executor 'dask' needs the package distributed",
            hint="pip install 'arc-halo[dask]'",
        ) from exc
    try:
        client: Any = Client(f"tcp://{address}", timeout=CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]  # it has no types
    except OSError as exc:
        raise InvalidInputError(
            f"no Dask scheduler answers at {address}",
            hint="start one: `dask scheduler`, and workers: `dask worker HOST:8786`",
            code="AH006",
        ) from exc
    with client:
        # A worker that died may have killed nothing but itself: others take its loop up.
        yield client.get_executor(pure=False, retries=3)
