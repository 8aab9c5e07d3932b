"""The executor `processes`: workers are processes of this machine, started for one merge."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event

from arc_halo.errors import InvalidInputError
from arc_halo.hookspecs import hookimpl
from arc_halo.types import WorkExecutor

LOOK_SECONDS = 0.5


@hookimpl
def arc_halo_executors() -> Iterator[WorkExecutor]:
    yield WorkExecutor(
        name="processes",
        version=1,
        summary="processes of this machine, for strategies that hold Python's lock",
        open=open_processes,
    )


@contextmanager
def open_processes(address: str | None, workers: int) -> Iterator[Executor]:
    """So many processes. They end when this is left by an exception, or when the program dies."""
    if address is not None:
        raise InvalidInputError("the executor 'processes' takes no address", code="AH006")
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(stop,)
    ) as pool:
        try:
            yield pool
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(stop: Event) -> None:
    # Ctrl-C goes to all processes of a terminal; the program then tells its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(stop,), daemon=True).start()


def _end_with(stop: Event) -> None:
    """End at once when told to: a claim dies with its connection, so nothing is lost."""
    parent = multiprocessing.parent_process()
    while not stop.wait(LOOK_SECONDS):
        if parent is not None and not parent.is_alive():
            break
    os._exit(1)
