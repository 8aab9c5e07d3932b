"""The body store `object`: a bucket or a directory, where the digest names the object."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from arc_halo.bodies.bucket import CREDENTIALS, Bucket
from arc_halo.bodies.directory import Directory
from arc_halo.errors import BodyStoreError
from arc_halo.hookspecs import hookimpl
from arc_halo.types import BodyStore, ChunkBodies

CHUNKS = "chunks"
MARKER = "arc-halo.json"
FORMAT = 1
TRANSFERS = 16

Body = bytes | memoryview
T = TypeVar("T")
R = TypeVar("R")


@hookimpl
def arc_halo_body_stores() -> Iterator[BodyStore]:
    yield BodyStore(
        name="object", version=1, summary="objects of a bucket, files of a directory", open=open_url
    )


@contextmanager
def open_url(url: str) -> Iterator[ChunkBodies]:
    """The store at `s3://bucket/prefix`, `gs://…`, `az://…` or `file:///directory`.

    Asks once whether it is there. Raises `BodyStoreError` for a URL that names no such place or
    holds more than the place, for a bucket or directory that cannot be read, and where obstore is
    not installed.
    """
    objects = _objects(url)
    with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="arc-halo-bodies") as pool:
        bodies = ObjectBodies(objects=objects, pool=pool, url=url)
        bodies.marker()
        yield bodies


class Objects(Protocol):
    """Named objects, each read and written whole. What cannot be done raises `BodyStoreError`."""

    def write(self, key: str, body: memoryview) -> None:
        """Durable when it returns, and never seen in part."""
        ...

    def create(self, key: str, body: memoryview) -> None:
        """The same, but what is there already stays."""
        ...

    def read(self, key: str) -> Body | None: ...

    def pages(self, folder: str, *, before: datetime) -> Iterator[Sequence[str]]:
        """The keys that begin with `folder/` and were written before then, some at a time."""
        ...

    def remove(self, keys: Sequence[str]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectBodies:
    """`ChunkBodies` over objects: `chunks/ab/cd/abcd…`, and the marker beside them."""

    objects: Objects
    pool: ThreadPoolExecutor
    url: str

    def put(self, bodies: Mapping[bytes, Body]) -> None:
        self._each(
            lambda item: self.objects.write(_key(item[0]), memoryview(item[1]).cast("B")),
            bodies.items(),
        )

    def get(self, digests: Sequence[bytes]) -> Mapping[bytes, Body]:
        found = self._each(lambda digest: self.objects.read(_key(digest)), digests)
        return {
            digest: body for digest, body in zip(digests, found, strict=True) if body is not None
        }

    def pages(self, *, older_than: timedelta) -> Iterator[Sequence[bytes]]:
        for keys in self.objects.pages(CHUNKS, before=datetime.now(UTC) - older_than):
            if digests := [digest for key in keys if (digest := _digest(key)) is not None]:
                yield digests

    def delete(self, digests: Sequence[bytes]) -> None:
        if digests:
            self.objects.remove([_key(digest) for digest in digests])

    def claim(self, marker: str) -> str:
        there = self.marker()
        if there is None:
            mine = json.dumps({"format": FORMAT, "marker": marker})
            self.objects.create(MARKER, memoryview(mine.encode() + b"\n"))
            there = self.marker()
        if there is None:
            raise BodyStoreError(
                f"{self.url}: the marker was written, and is not there",
                hint="something removes objects from it; give Arc-Halo a place of its own",
            )
        return there

    def marker(self) -> str | None:
        """Whose store it is; None for nobody's yet."""
        text = self.objects.read(MARKER)
        if text is None:
            return None
        try:
            value = json.loads(bytes(text))
        except ValueError:
            value = None
        marker = value.get("marker") if isinstance(value, dict) else None
        if not isinstance(value, dict) or value.get("format") != FORMAT or not marker:
            raise BodyStoreError(
                f"{self.url}: {MARKER} is not a marker that this version can read",
                hint="another program or a newer Arc-Halo wrote it; use another prefix",
            )
        return str(marker)

    def _each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`work` on each item, some at a time; after a failure no more are begun."""
        futures = [self.pool.submit(work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
        return [future.result() for future in futures if not future.cancelled()]


def _key(digest: bytes) -> str:
    name = digest.hex()
    return f"{CHUNKS}/{name[:2]}/{name[2:4]}/{name}"


_CHUNK = re.compile(rf"{CHUNKS}/([0-9a-f]{{2}})/([0-9a-f]{{2}})/(\1\2[0-9a-f]{{60}})")


def _digest(key: str) -> bytes | None:
    """The digest that an object is named by; None for an object that is none of ours."""
    match = _CHUNK.fullmatch(key)
    return bytes.fromhex(match[3]) if match else None


_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WRONG_PREFIX = re.compile(r"//|(?:^|/)\.{1,2}(?:/|$)|[\x00-\x1f]")


def _objects(url: str) -> Objects:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _wrong_url("the URL cannot be read") from None
    # Nothing of the URL is shown before these checks: it may hold a secret.
    if "@" in parts.netloc or ":" in parts.netloc or parts.query or parts.fragment:
        raise BodyStoreError(
            "the URL of a body store holds more than a place: a user, a port, or what follows `?`",
            hint="write s3://bucket/prefix; endpoint and secrets come from the environment, "
            "as AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if parts.scheme == "file":
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
            raise _wrong_url(f"{url!r} names no directory of this machine")
        return Directory.open(Path(path), url=url)
    if parts.scheme not in CREDENTIALS:
        raise _wrong_url("the URL of a body store begins with none of file, s3, gs and az")
    prefix = parts.path.strip("/")
    if not _BUCKET.fullmatch(parts.netloc) or _WRONG_PREFIX.search(prefix):
        raise _wrong_url(f"the {parts.scheme} URL of a body store names no bucket and prefix")
    return Bucket.open(url)


def _wrong_url(what: str) -> BodyStoreError:
    return BodyStoreError(what, hint="write s3://bucket/prefix, or file:///directory")
