"""A worker that has a process of its own: what it is told, and how it sets itself up."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from arc_halo.errors import ArcHaloError, ConnectionFailedError, FusionError
from arc_halo.fusion.working import work
from arc_halo.plugins import PluginManager
from arc_halo.store import fusions
from arc_halo.store.connection import pool
from arc_halo.weights.bodies import open_bodies
from arc_halo.weights.store import WeightStore

URL_VARIABLE = "ARC_HALO_DATABASE_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker has to know; it is pickled on its way. Never shown: the address is a secret.

    Without a `url` the worker takes that of its own environment. `bodies` is a body store's plugin
    and URL. `memory_bytes` are for this worker alone.
    """

    build_id: UUID
    url: str | None = field(repr=False)
    plugin_files: tuple[tuple[str, Path], ...]
    codec: str | None
    chunk_bytes: int
    memory_bytes: int
    bodies: tuple[str, str | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a job: tensors computed and bytes stored, or the error that ended it.

    `lost` is what was said of a connection that was cut: others go on.
    """

    tensors: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0
    error: tuple[str, str, str | None] | None = None
    lost: str | None = None


def do_job(job: Job) -> Outcome:
    """Work at a build from a process of one's own, as long as its driver is there."""
    try:
        with _store(job) as (store, plugins):
            _check_build(store, job)
            strategies = {n: (p.item, p.version) for n, p in plugins.strategies.items()}
            done = work(store, strategies, job.build_id, needs_driver=True)
    except ConnectionFailedError as exc:
        return Outcome(lost=f"{socket.gethostname()}: {exc.message}")
    except ArcHaloError as exc:
        # Our errors do not survive pickling, and what they were raised from may hold a secret.
        return Outcome(error=(exc.code, f"{socket.gethostname()}: {exc.message}", exc.hint))
    return Outcome(
        tensors=done.tensors,
        new_bytes=done.totals.new_bytes,
        stored_bytes=done.totals.stored_bytes,
    )


@contextmanager
def _store(job: Job) -> Iterator[tuple[WeightStore, PluginManager]]:
    url = job.url or os.environ.get(URL_VARIABLE)
    if url is None:
        raise FusionError(
            f"the worker has no {URL_VARIABLE}",
            hint=f"start workers with {URL_VARIABLE} in their environment",
        )
    plugins = PluginManager.load(dict(job.plugin_files))
    codecs = {name: provided.item for name, provided in plugins.codecs.items()}
    with pool(url, 5, application_name="arc-halo worker") as opened:
        store = WeightStore(
            pool=opened,
            codecs=codecs,
            codec=job.codec,
            chunk_bytes=job.chunk_bytes,
            memory_bytes=job.memory_bytes,
            threads=1,
        )
        if job.bodies is None:
            yield store, plugins
            return
        name, place = job.bodies
        with open_bodies(opened, plugins.body_store(name), place) as bodies:
            yield replace(store, bodies=bodies), plugins


def _check_build(store: WeightStore, job: Job) -> None:
    with store.pool.connection() as conn:
        if not fusions.is_entered(conn, job.build_id):
            raise FusionError(
                "the worker's database is not that of the program it works for",
                hint=f"give both the same {URL_VARIABLE}",
            )
