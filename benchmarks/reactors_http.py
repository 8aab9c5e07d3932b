"""A reactor of 20 members asked by 1,000 requests at once, with 5 % of the answers failing.

    python benchmarks/reactors_http.py [--requests N]

It writes a project into a temporary directory, applies it to the embedded PostgreSQL (or to
ARC_HALO_DATABASE_URL), starts `arc-halo serve` as a process of its own, and asks over sockets of
this one. Printed are the requests that were answered, those on record, those lost, and how many
are answered a second. Exits with 1 when one is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
REACTOR, REQUESTS = "many", 1_000
SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of one request."""

    status: int
    text: str = ""
    operation: str = ""
    left_out: int = 0


def ask_at_once(url: str, key: str, reactor: str, count: int) -> list[Reply]:
    """So many chats, all begun before the first is answered; the n-th says n."""
    return asyncio.run(_ask_all(url, key, reactor, count))


async def _ask_all(url: str, key: str, reactor: str, count: int) -> list[Reply]:
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(limits=limits, timeout=SECONDS, headers=headers) as client:
        calls = (_ask(client, url, reactor, str(number)) for number in range(count))
        return await asyncio.gather(*calls)


async def _ask(client: httpx.AsyncClient, url: str, reactor: str, text: str) -> Reply:
    body = {"model": reactor, "messages": [{"role": "user", "content": text}]}
    try:
        response = await client.post(f"{url}/v1/chat/completions", json=body)
    except httpx.TransportError:
        return Reply(status=0)
    if response.status_code != 200:
        return Reply(status=response.status_code)
    found = response.json()
    return Reply(
        status=200,
        text=found["choices"][0]["message"]["content"],
        operation=found["arc_halo"]["operation"],
        left_out=len(found["arc_halo"]["left_out"]),
    )


def measure_http(count: int = REQUESTS) -> bool:
    """Ask, count and print; whether nothing was lost."""
    from arc_halo.project import Project
    from tests.serving.projects import write_project

    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "project"
        write_project(directory)
        with Project(directory) as project:
            project.migrate()
            project.apply(project.plan())
            key = _program(directory, project.url, "keys", "create", "benchmark").strip()
            with _server(directory, project.url) as server:
                assert server.stdout is not None
                url = server.stdout.readline().strip().removesuffix("/v1")
                started = time.perf_counter()
                replies = ask_at_once(url, key, REACTOR, count)
                seconds = time.perf_counter() - started
                server.terminate()
                server.communicate()
            with project.connection() as conn:
                row = conn.execute(
                    b"SELECT count(*) FROM fusion_operations WHERE status = 'completed'"
                ).fetchone()
    assert row is not None
    return _report(replies, int(row[0]), seconds)


def _report(replies: Sequence[Reply], recorded: int, seconds: float) -> bool:
    answered = sum(reply.status == 200 for reply in replies)
    failed = sum(reply.left_out for reply in replies)
    lost = len(replies) - min(answered, recorded)
    print(f"requests at once      {len(replies):>8,}")
    print(f"answered              {answered:>8,}")
    print(f"recorded              {recorded:>8,}")
    print(f"lost                  {lost:>8,}")
    print(f"answers that failed   {failed / max(1, 20 * answered):>8.1%}")
    print(f"requests a second     {len(replies) / seconds:>8.1f}")
    return lost == 0 and answered == recorded


def _environ(url: str) -> dict[str, str]:
    return {**os.environ, "ARC_HALO_DATABASE_URL": url, "PYTHONUNBUFFERED": "1"}


def _program(directory: Path, url: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "arc_halo", *arguments],
        cwd=directory, env=_environ(url), check=True, text=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip


def _server(directory: Path, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "arc_halo", "serve", "--port", "0", "--reactor", REACTOR],
        cwd=directory, env=_environ(url), text=True, stdout=subprocess.PIPE,
    )  # fmt: skip


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=REQUESTS)
    sys.exit(0 if measure_http(parser.parse_args().requests) else 1)
