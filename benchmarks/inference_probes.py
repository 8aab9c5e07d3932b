"""What `inference.py` measures, each in a fresh process.

    python inference_probes.py PROBE ARGUMENTS-AS-JSON

prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import xxhash
from inference_site import open_cache, tokens
from server_cpu import charged


def load(*, url: str, count: int, repetitions: int, postmaster: int) -> dict[str, Any]:
    """A prefix loaded again and again, each time all of it, verified and in its arrays."""
    asked = tokens(count)
    with open_cache(url, "raw") as cache:
        assert cache.load(asked).length == count
        started = time.perf_counter()
        with charged(postmaster, writes=False) as cost:
            for _ in range(repetitions):
                found = cache.load(asked)
                assert found.length == count
        seconds = time.perf_counter() - started
    return {**cost, "seconds": seconds}


def bare(*, url: str, repetitions: int, postmaster: int) -> dict[str, Any]:
    """The same rows by COPY, dropped as they come: what no cache in PostgreSQL can be below."""
    with psycopg.connect(url, autocommit=True) as conn:
        statement = "COPY (SELECT body FROM kv_cache_bodies) TO STDOUT (FORMAT BINARY)"

        def get() -> int:
            with conn.cursor().copy(statement) as copy:
                return sum(len(message) for message in copy)

        size = get()
        with charged(postmaster, writes=False) as cost:
            for _ in range(repetitions):
                assert get() == size
    return {**cost, "bytes": size}


def redis(
    *, socket: str, keys: list[str], digests: list[str], repetitions: int, server: int
) -> dict[str, Any]:
    """The same bytes from Redis by redis-py with hiredis, verified by the same digest."""
    import redis as client

    with client.Redis(unix_socket_path=socket) as connection:

        def get() -> None:
            for value, digest in zip(connection.mget(keys), digests, strict=True):
                assert xxhash.xxh3_128_hexdigest(value) == digest

        get()
        started = time.perf_counter()
        server_before, before = _seconds(server), time.process_time()
        for _ in range(repetitions):
            get()
        own = time.process_time() - before
        seconds = time.perf_counter() - started
        return {"client": own, "server": _seconds(server) - server_before, "seconds": seconds}


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


PROBES = {probe.__name__: probe for probe in (load, bare, redis)}


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](**json.loads(sys.argv[2]))))
