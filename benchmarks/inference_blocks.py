"""The KV cache by itself: read beside Redis, and a prefix found among a million blocks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import psycopg
import xxhash
from inference_site import LAYOUT, SCOPE, layers, open_cache, tokens
from rows import Row
from server_cpu import server_seconds
from tensor_site import Cost, Site, interleaved, ratio_row

from arc_halo.inference.keys import chain, namespace, token_blocks
from arc_halo.store import kv_cache
from arc_halo.store.connection import connect

TOKENS = 512
"""8 MiB of keys and values."""

BLOCK_TOKENS = 64
MATCHED_BLOCKS = 128


def against_redis(at: Site, url: str, repetitions: int) -> Iterator[Row]:
    """Loading 8 MiB, as blocks of 1 MiB in both, and as one value in Redis."""
    program = shutil.which("redis-server")
    if program is None:
        yield Row(what="get of 8 MiB / redis-py + hiredis", figure="no redis-server", is_met=False)
        return
    given = layers(TOKENS)
    with open_cache(url, "raw") as cache:
        assert cache.store(tokens(TOKENS), given)
        assert cache.flush(60)
    with _redis(program) as (socket, pid):
        whole = _put(socket, given)
        once = 40

        def ours() -> Cost:
            fields = {"url": url, "count": TOKENS, "repetitions": once, "postmaster": at.postmaster}
            return _probe("load", fields)

        def bare() -> Cost:
            fields = {"url": url, "repetitions": once, "postmaster": at.postmaster}
            return _probe("bare", fields)

        def theirs(parts: Sequence[tuple[str, str]]) -> Cost:
            keys, digests = zip(*parts, strict=True)
            fields = {"socket": socket, "keys": keys, "digests": digests, "server": pid}
            return _probe("redis", {**fields, "repetitions": once})

        costs = interleaved(
            {
                "ours": ours,
                "bare": bare,
                **{name: partial(theirs, parts) for name, parts in whole.items()},
            },
            repetitions,
        )
    what = "get of 8 MiB, client + server CPU / redis-py + hiredis"
    yield ratio_row(what, costs, "ours", "one", 0.6, "<=")
    for what, above, below in (
        ("  the same, beside 8 values of 1 MiB by MGET", "ours", "eight"),
        ("  a bare COPY of the rows, dropped / redis-py + hiredis", "bare", "one"),
    ):
        told = ratio_row(what, costs, above, below, 0.6, "<=")
        yield Row(what=told.what, figure=told.figure)
    for name in costs:
        figure = ", ".join(f"{1000 * cost.cpu / once:.2f}" for cost in costs[name])
        yield Row(what=f"  {name}: CPU ms a get", figure=figure)


def match(at: Site, url: str, blocks: int, repetitions: int) -> Iterator[Row]:
    """The longest prefix of 128 blocks, all there, among many blocks of all generations."""
    prompt = tokens(MATCHED_BLOCKS * BLOCK_TOKENS)
    space = namespace(SCOPE, LAYOUT.digest(), 0, BLOCK_TOKENS, "raw")
    keys = chain(space, token_blocks(prompt, BLOCK_TOKENS))
    with connect(url) as conn:
        _fill(conn, keys, blocks)
        conn.execute("ANALYZE kv_cache")
    figures = []
    with open_cache(url, "raw") as cache:
        assert cache.match(prompt) == len(prompt)
        with connect(url) as conn:
            conn.execute("SELECT pg_stat_reset()")
        for _ in range(repetitions):
            before, started = server_seconds(at.postmaster), time.perf_counter()
            for _ in range(50):
                assert cache.match(prompt) == len(prompt)
            seconds = time.perf_counter() - started
            figures.append((server_seconds(at.postmaster) - before, seconds))
    cpu = median(1000 * cpu / 50 for cpu, _ in figures)
    wall = median(1000 * seconds / 50 for _, seconds in figures)
    yield Row(
        what=f"match of {MATCHED_BLOCKS} blocks among {blocks:,}, server CPU ms",
        figure=f"{cpu:.2f}  ({wall:.2f} ms in all, keys made)",
        bar="<= 5",
        is_met=cpu <= 5,
    )


def _fill(conn: psycopg.Connection[tuple[object, ...]], keys: Sequence[bytes], count: int) -> None:
    """Rows of blocks without bodies, those of `keys` among them, over all generations."""
    numbers = np.random.default_rng(1)
    with conn.cursor() as cursor, cursor.copy(kv_cache.COPY_BLOCKS) as copy:
        copy.set_types(
            ["bytea", "int2", "int4", "int4", "bytea", "bytea", "text", "bytea", "bytea", "text",
             "int4", "int4", "int8", "int8", "float4"]
        )  # fmt: skip
        for index in range(count):
            key = keys[index] if index < len(keys) else numbers.bytes(32)
            copy.write_row(
                (key, index % 7, 0, BLOCK_TOKENS, None, bytes(32), "", bytes(4 * BLOCK_TOKENS),
                 bytes(16), "raw", 1, 1, 2**20, 2**20, None)
            )  # fmt: skip


@contextmanager
def _redis(program: str) -> Iterator[tuple[str, int]]:
    """A server of its own, in memory alone, on a socket; its process."""
    with tempfile.TemporaryDirectory(prefix="arc-halo-redis-") as directory:
        socket = str(Path(directory) / "redis.sock")
        process = subprocess.Popen(
            [program, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"],
            cwd=directory,
            stdout=subprocess.DEVNULL,
        )
        try:
            while not Path(socket).exists():
                time.sleep(0.05)
            yield socket, process.pid
        finally:
            process.terminate()
            process.wait()


def _put(socket: str, given: Sequence[object]) -> dict[str, list[tuple[str, str]]]:
    """The bytes as one value and as eight, with their digests."""
    import redis

    body = b"".join(
        array.tobytes()
        for layer in given
        for array in (layer.keys, layer.values)  # type: ignore[attr-defined]
    )
    step = len(body) // 8
    values = {"one": [body], "eight": [body[i : i + step] for i in range(0, len(body), step)]}
    found: dict[str, list[tuple[str, str]]] = {}
    with redis.Redis(unix_socket_path=socket) as connection:
        for name, parts in values.items():
            for index, part in enumerate(parts):
                connection.set(f"{name}:{index}", part)
                digest = xxhash.xxh3_128_hexdigest(part)
                found.setdefault(name, []).append((f"{name}:{index}", digest))
    return found


def _probe(name: str, arguments: dict[str, object]) -> Cost:
    script = Path(__file__).with_name("inference_probes.py")
    done = subprocess.run(
        [sys.executable, str(script), name, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the probe {name} exited with {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Cost(client=found.pop("client"), server=found.pop("server"), said=found)
