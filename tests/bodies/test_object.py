"""The body store `object` keeps bodies in a directory and in a bucket alike."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import pytest

from arc_halo.errors import BodyStoreError
from arc_halo.plugins import PluginManager
from arc_halo.types import ChunkBodies

KIB = 1024


@contextmanager
def opened(url: str) -> Iterator[ChunkBodies]:
    """The store as a project opens it."""
    descriptor = PluginManager().body_store("object")
    assert descriptor.open is not None
    with descriptor.open(url) as bodies:
        yield bodies


def some(count: int, size: int, *, seed: int = 0) -> dict[bytes, bytes]:
    """Bodies by their own digests."""
    chance = random.Random(seed)
    bodies = (chance.randbytes(size) for _ in range(count))
    return {hashlib.sha256(body).digest(): body for body in bodies}


def whole(bodies: ChunkBodies, digests) -> dict[bytes, bytes]:
    return {digest: bytes(body) for digest, body in bodies.get(list(digests)).items()}


def listed(bodies: ChunkBodies) -> list[bytes]:
    return [digest for page in bodies.pages(older_than=timedelta(0)) for digest in page]


def test_bodies_come_back_as_they_were_put(place) -> None:
    mine = some(1500, 40) | some(8, 256 * KIB) | {bytes(32): b""}
    with opened(place.url) as bodies:
        bodies.put(mine)
    with opened(place.url) as bodies:
        assert whole(bodies, mine) == mine


def test_the_digest_names_the_object(place) -> None:
    (digest, body), *_ = some(1, 40).items()
    name = digest.hex()
    with opened(place.url) as bodies:
        bodies.put({digest: body})
    assert place.read(f"chunks/{name[:2]}/{name[2:4]}/{name}") == body


def test_any_view_of_memory_can_be_put(place) -> None:
    array = np.arange(1000, dtype=np.float32)
    views = [memoryview(array)[10:], memoryview(bytearray(b"abcdef"))[2:4], memoryview(b"xyz")]
    mine = {hashlib.sha256(view).digest(): view for view in views}
    with opened(place.url) as bodies:
        bodies.put(mine)
        assert whole(bodies, mine) == {digest: view.tobytes() for digest, view in mine.items()}


def test_a_second_body_takes_the_place_of_the_first(place) -> None:
    digest = bytes(range(32))
    with opened(place.url) as bodies:
        bodies.put({digest: b"a longer body, in one codec"})
        bodies.put({digest: b"short"})
        assert whole(bodies, [digest]) == {digest: b"short"}
        assert listed(bodies) == [digest]


def test_what_is_missing_is_left_out(place) -> None:
    mine = some(3, 40)
    with opened(place.url) as bodies:
        assert whole(bodies, mine) == {}
        bodies.put(mine)
        assert whole(bodies, [*mine, *some(2, 40, seed=1)]) == mine


def test_nothing_is_asked_for_nothing(place) -> None:
    with opened(place.url) as bodies:
        bodies.put({})
        bodies.delete([])
        assert whole(bodies, []) == {}
        assert listed(bodies) == []


def test_what_is_deleted_is_gone_and_may_be_missing(place) -> None:
    mine = some(20, 40)
    gone = list(mine)[:10]
    with opened(place.url) as bodies:
        bodies.put(mine)
        bodies.delete([*some(2, 40, seed=1), *gone])
        bodies.delete(gone)
        assert sorted(listed(bodies)) == sorted(list(mine)[10:])


def test_pages_name_every_body_once(place) -> None:
    mine = some(1100, 8)
    with opened(place.url) as bodies:
        bodies.put(mine)
        pages = list(bodies.pages(older_than=timedelta(0)))
        assert all(0 < len(page) <= 1000 for page in pages)
        assert sorted(digest for page in pages for digest in page) == sorted(mine)
        bodies.delete(list(mine))
        assert listed(bodies) == []


def test_objects_of_others_are_passed_over(place) -> None:
    mine = some(3, 40)
    foreign = (
        "chunks/README",
        "chunks/ab/note.txt",
        "chunks/ab/cd/short",
        f"chunks/ab/cd/{'e' * 64}",
        f"chunks/AB/CD/ABCD{'0' * 60}",
        f"chunks/ab/cd/abcd{'0' * 60}.bak",
        f"chunks/ab/cd/deeper/abcd{'0' * 60}",
        "chunks.old/ab/cd/abcd",
        f"abcd{'0' * 60}",
    )
    for key in foreign:
        place.write(key, b"not ours")
    with opened(place.url) as bodies:
        bodies.put(mine)
        assert sorted(listed(bodies)) == sorted(mine)
    assert {place.read(key) for key in foreign} == {b"not ours"}


def test_a_store_sees_its_own_prefix_only(bucket) -> None:
    mine, others = some(3, 40), some(3, 40, seed=1)
    with opened(bucket.url) as bodies, opened(f"{bucket.url}2") as beside:
        bodies.put(mine)
        beside.put(others)
        assert (bodies.claim("a"), beside.claim("b")) == ("a", "b")
        assert sorted(listed(bodies)) == sorted(mine)
        assert sorted(listed(beside)) == sorted(others)


def test_the_first_marker_stays(place) -> None:
    with opened(place.url) as bodies:
        assert bodies.claim("first") == "first"
        assert bodies.claim("second") == "first"
    with opened(place.url) as bodies:
        assert bodies.claim("third") == "first"
        assert listed(bodies) == []
    assert json.loads(place.read("arc-halo.json")) == {"format": 1, "marker": "first"}


def test_those_who_claim_at_once_agree(place) -> None:
    with opened(place.url) as bodies, ThreadPoolExecutor(8) as pool:
        won = set(pool.map(bodies.claim, [f"marker {n}" for n in range(8)]))
        assert won == {json.loads(place.read("arc-halo.json"))["marker"]}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2, "marker": "x"}', '{"format": 1}', "\xff"]
)
def test_a_marker_of_something_else_is_refused(place, text) -> None:
    place.write("arc-halo.json", text.encode("latin-1"))
    with pytest.raises(BodyStoreError, match=r"arc-halo\.json is not a marker"), opened(place.url):
        pass


def test_eight_threads_may_use_one_store(place) -> None:
    shared = some(10, 1000)

    def work(seed: int) -> bool:
        own = some(40, 1000, seed=seed)
        bodies.put(shared | own)
        same = whole(bodies, [*shared, *own]) == shared | own
        bodies.delete(list(own))
        return same

    with opened(place.url) as bodies, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(1, 9)))
        assert sorted(listed(bodies)) == sorted(shared)


PUT_FOR_EVER = """
import hashlib, os, sys
from arc_halo.bodies.object import open_url
with open_url(sys.argv[1]) as bodies:
    while True:
        some = [os.urandom(1 << 20) for _ in range(16)]
        bodies.put({hashlib.sha256(body).digest(): body for body in some})
        print("put", flush=True)
"""


@pytest.mark.parametrize("puts", [1, 2, 3])
def test_a_killed_put_leaves_no_half_body(directory, puts) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PUT_FOR_EVER, directory.url], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for _ in range(puts):
            assert writer.stdout.readline() == "put\n"
        writer.send_signal(signal.SIGKILL)
    with opened(directory.url) as bodies:
        found = whole(bodies, listed(bodies))
        assert len(found) >= 16 * puts
        assert [digest for digest, body in found.items() if _sha256(body) != digest] == []


def test_a_put_that_fails_leaves_no_part_behind(directory) -> None:
    root = directory.root
    digest = bytes(range(32))
    (root / "chunks" / "00" / "01" / digest.hex()).mkdir(parents=True)
    with opened(directory.url) as bodies, pytest.raises(BodyStoreError, match="directory"):
        bodies.put({digest: b"body"})
    assert list(root.rglob(".*")) == []


def test_names_that_are_no_text_and_links_in_circles_are_passed_over(directory) -> None:
    root = directory.root
    mine = some(3, 40)
    with opened(directory.url) as bodies:
        bodies.put(mine)
        found = {path.name for path in (root / "chunks").iterdir()}
        for name in ("\udcff\udcfe", "a\nb"):
            (root / "chunks" / name).write_bytes(b"")
        missing = next(name for name in ("00", "01", "02", "03") if name not in found)
        (root / "chunks" / missing).symlink_to(root / "chunks")
        assert sorted(listed(bodies)) == sorted(mine)


def test_directories_need_no_extra_package_and_nothing_is_imported_early(directory) -> None:
    script = (
        "import sys; sys.modules['obstore'] = None\n"
        "from arc_halo.plugins import PluginManager\n"
        "with PluginManager().body_store('object').open(sys.argv[1]) as bodies:\n"
        "    bodies.put({bytes(32): b'body'})\n"
        "    assert bytes(bodies.get([bytes(32)])[bytes(32)]) == b'body'\n"
    )
    subprocess.run([sys.executable, "-c", script, directory.url], check=True, timeout=60)


def _sha256(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
