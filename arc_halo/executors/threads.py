"""The executor `threads`: workers are threads of the program itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from arc_halo.errors import InvalidInputError
from arc_halo.hookspecs import hookimpl
from arc_halo.types import WorkExecutor


@hookimpl
def arc_halo_executors() -> Iterator[WorkExecutor]:
    yield WorkExecutor(
        name="threads",
        version=1,
        summary="threads of the program: numpy, hashing and the driver let go of the lock",
        open=open_threads,
        shares_memory=True,
    )


@contextmanager
def open_threads(address: str | None, workers: int) -> Iterator[Executor]:
    """So many threads."""
    if address is not None:
        raise InvalidInputError("the executor 'threads' takes no address", code="AH006")
    with ThreadPoolExecutor(workers, thread_name_prefix="arc-halo-work") as pool:
        yield pool
