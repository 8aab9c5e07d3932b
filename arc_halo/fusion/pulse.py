"""Signs of life while a tensor takes its time: for the claim, and for the build it belongs to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import psycopg

from arc_halo.errors import ArcHaloError
from arc_halo.store import builds
from arc_halo.store.rows import Connection
from arc_halo.weights.store import WeightStore

PULSE_SECONDS = 20.0


@contextmanager
def pulse(store: WeightStore, build_id: UUID, claims: Connection | None = None) -> Iterator[None]:
    """Say every 20 seconds that somebody works at the build, and keep `claims` from idling.

    However long a strategy computes without a word, or a survey reads.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(PULSE_SECONDS):
            # A connection that is lost is told of by whoever works with it.
            with suppress(ArcHaloError, psycopg.Error):
                if claims is not None:
                    claims.execute("SELECT")
                with store.pool.connection() as conn:
                    builds.beat(conn, build_id)

    thread = threading.Thread(target=run, name="arc-halo-pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
