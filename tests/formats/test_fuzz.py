"""Files nobody should have written: each is read as the safetensors library reads it, or refused.

`pytest -m campaign tests/formats/test_fuzz.py` looks longer.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arc_halo.errors import FormatError, WeightsError
from arc_halo.formats.safetensors import arc_halo_weight_formats, open_safetensors
from arc_halo.plugins import PluginManager
from arc_halo.reconcile.progress import Silent
from arc_halo.reconcile.registering import Registration, register
from arc_halo.store.connection import pool
from arc_halo.tensors.dtypes import DTYPES, size_bytes
from arc_halo.transfer.sources import DigestCache
from arc_halo.weights.store import WeightStore

(SAFETENSORS,) = arc_halo_weight_formats()
DEMO = sorted((Path(__file__).parents[2] / "examples" / "weights").glob("*/model.safetensors"))

SHORT, LONG = 150, 50_000
STUCK_SECONDS = 60
"""Far beyond what a file of a few hundred bytes can take: not a measurement, but an end."""

STRICTER = [
    # JSON's own rules: the library's parser keeps the last of two, and skips what it need not know.
    r"stands twice in one JSON object",
    r"does not have exactly data_offsets, dtype, shape",
    # What PostgreSQL's text cannot hold.
    r"has a NUL or half a character",
    # What no array can have: its other dimensions overflow, though one of 0 leaves it empty.
    r"\[[^\]]*\b0\b[^\]]*\] is negative or too large",
    r"shape is not a list of whole numbers from 0 to 2\*\*63 - 1",
]
"""Why we refuse what the library reads."""

LAXER = [r"floating point `-0\.0`"]
"""Why the library refuses what we read: to JSON, -0 is a whole number."""

Pairs = list[tuple[str, Any]]

NAMES = ["a", "b", "layer.0.weight", "", "é", "\0", "\ud800", "__metadata__", "dtype"]
TOKENS = [
    "0", "1", "2", "4", "8", "16", "-1", "-0", "01", "1.0", "1e1", "1E400", "NaN", "Infinity",
    "-Infinity", "true", "false", "null", '""', '"1"', "[]", "{}", "[[1]]",
    str(2**31), str(2**53 + 1), str(2**63 - 1), str(2**63), str(2**64 - 1), str(2**64),
    "9" * 400, "9" * 5000, "[" * 5000, '{"a":' * 5000,
]  # fmt: skip
SPACES = ["", "", "", " ", "\n", "\t ", " " * 7, "\0", "x"]


def to_json(value: Any) -> str:
    """JSON of tokens, lists and pairs, in which a key may well stand twice."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return "[" + ",".join(map(to_json, value)) + "]"
    return "{" + ",".join(f"{json.dumps(key)}:{to_json(inner)}" for key, inner in value) + "}"


@st.composite
def valid_documents(draw: st.DrawFn) -> tuple[Pairs, int]:
    """A header that is right, as pairs, and the size of its data."""
    document: Pairs = []
    if draw(st.booleans()):
        document.append(("__metadata__", [("format", '"pt"')]))
    end = 0
    for name in draw(st.lists(st.sampled_from(NAMES[:5]), max_size=3, unique=True)):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 4, 8]), max_size=3))
        bits = DTYPES[dtype].item_bits
        if bits % 8 and not any(dim in (0, 4, 8) for dim in shape):
            shape.append(8)
        size = size_bytes(dtype, shape)
        entry = [
            ("dtype", json.dumps(dtype)),
            ("shape", tuple(map(str, shape))),
            ("data_offsets", (str(end), str(end + size))),
        ]
        document.append((name, draw(st.permutations(entry))))
        end += size
    return draw(st.permutations(document)), end


def places(value: Any) -> Iterator[tuple[int, ...]]:
    """The path to each token, list and object in it."""
    yield ()
    if not isinstance(value, str):
        for index, inner in enumerate(value):
            child = inner if isinstance(value, tuple) else inner[1]
            yield from ((index, *path) for path in places(child))


def changed(value: Any, path: tuple[int, ...], change: Callable[[Any], Any]) -> Any:
    """The same with `change` made at that place."""
    if not path:
        return change(value)
    index, *rest = path
    items = list(value)
    if isinstance(value, tuple):
        items[index] = changed(items[index], tuple(rest), change)
        return tuple(items)
    items[index] = (items[index][0], changed(items[index][1], tuple(rest), change))
    return items


@st.composite
def changes(draw: st.DrawFn) -> Callable[[Any], Any]:
    """Something done to a token, a list or an object."""
    token = draw(st.sampled_from(TOKENS))
    kind = draw(st.sampled_from(["replace", "drop", "double", "rename", "append"]))
    name = draw(st.sampled_from([*NAMES, "shape", "data_offsets"]))
    choose = draw(st.integers(0, 10))

    def change(value: Any) -> Any:
        if isinstance(value, str) or not value or kind == "replace":
            return token
        at = choose % len(value)
        if kind == "drop":
            return value[:at] + value[at + 1 :]
        if kind == "double":
            return value[:at] + value[at : at + 1] * 2 + value[at + 1 :]
        if isinstance(value, tuple):
            return (*value, token)
        if kind == "append":
            return [*value, (name, token)]
        return [*value[:at], (name, value[at][1]), *value[at + 1 :]]

    return change


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """The bytes of a file that is right but for a few things."""
    document, data_bytes = draw(valid_documents())
    broken: Any = document
    for change in draw(st.lists(changes(), max_size=2)):
        broken = changed(broken, draw(st.sampled_from(list(places(broken)))), change)
    text = (to_json(broken) + draw(st.sampled_from(SPACES))).encode()
    length = draw(
        st.one_of(
            *[st.just(len(text))] * 4,
            st.integers(-9, 9).map(lambda d: max(0, len(text) + d)),
            st.sampled_from([0, 1, 100_000_000, 100_000_001, 2**63 - 1, 2**64 - 8, 2**64 - 1]),
        )
    )
    data_bytes = max(0, data_bytes + draw(st.sampled_from([0] * 6 + [-1, 1, 8])))
    whole = struct.pack("<Q", length) + text + bytes(i % 251 for i in range(data_bytes))
    return whole[: draw(st.sampled_from([None] * 8 + [0, 1, 7, 8, 9, -1]))]


@contextmanager
def ended_if_stuck() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise AssertionError("a small file took very long")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(STUCK_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ours(path: Path) -> tuple[dict[str, Any] | None, str]:
    """What we read, or None and why not."""
    try:
        with open_safetensors(path) as reader:
            found = {}
            for info in reader.tensors:
                out = bytearray(info.size_bytes)
                reader.read_into(info.name, 0, memoryview(out))
                found[info.name] = (info.dtype, list(info.shape), bytes(out))
            return found, ""
    except FormatError as exc:
        refused = exc
    assert refused.hint
    assert path.name in refused.message
    return None, refused.message


def theirs(data: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        read = safetensors.deserialize(data)
    except safetensors.SafetensorError as exc:
        return None, str(exc)
    return {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in read}, ""


def check(path: Path, data: bytes) -> bool:
    """Whether we read the file, as the library does; else it is one of the known differences."""
    path.write_bytes(data)
    with ended_if_stuck():
        tracemalloc.start()
        mine, why_not = ours(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 2**20 + 100 * len(data)
    reference, why_not_they = theirs(data)
    if mine is None and reference is not None:
        assert any(re.search(known, why_not) for known in STRICTER), why_not
    elif mine is not None and reference is None:
        assert any(re.search(known, why_not_they) for known in LAXER), why_not_they
    else:
        assert mine == reference
    return mine is not None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.safetensors"


QUICK = settings(max_examples=SHORT, deadline=None)
CAMPAIGN = settings(
    max_examples=LONG, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@QUICK
@given(data=files())
def test_a_header_is_read_as_the_library_reads_it_or_refused(path: Path, data: bytes) -> None:
    check(path, data)


@pytest.mark.campaign
@CAMPAIGN
@given(data=files())
def test_a_header_is_read_as_the_library_reads_it_or_refused_for_long(
    path: Path, data: bytes
) -> None:
    check(path, data)


@QUICK
@given(case=valid_documents())
def test_what_is_right_is_read(path: Path, case: tuple[Pairs, int]) -> None:
    document, data_bytes = case
    text = to_json(document).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(i % 251 for i in range(data_bytes))
    assert check(path, data)


DIFFERENT = {
    "a key twice": b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    "more than it need say": b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":2}}',
    "NUL": b'{"a\\u0000":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_every_known_difference_is_one(path: Path, case: str) -> None:
    data = struct.pack("<Q", len(DIFFERENT[case])) + DIFFERENT[case] + b"1"
    assert theirs(data)[0] is not None
    assert not check(path, data)


# --- real files ------------------------------------------------------------------------------


def small_files() -> list[bytes]:
    """Models of the kinds that are about: one with metadata, one bare, one with odd parts."""
    made = []
    for metadata, tensors in [
        ({"format": "pt"}, {"w": ("F32", [2, 3]), "b": ("BF16", [3]), "s": ("I64", [])}),
        ({}, {"model.layers.0.q": ("F16", [4, 2]), "model.layers.1.q": ("F16", [4, 2])}),
        ({"é": "🙂"}, {"empty": ("F32", [0, 4]), "mask": ("BOOL", [5]), "f8": ("F8_E4M3", [8])}),
    ]:
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        end = 0
        for name, (dtype, shape) in tensors.items():
            size = size_bytes(dtype, shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        made.append(struct.pack("<Q", len(text)) + text + bytes(i % 251 for i in range(end)))
    return made


def mutated(data: bytes, choose: random.Random, end: int) -> bytes:
    """`data` with one to three changes before `end`, or another end."""
    for _ in range(choose.choice([1, 1, 2, 3])):
        at = choose.randrange(end)
        length = choose.randrange(1, 9)
        other = choose.randrange(end)
        data = choose.choice(
            [
                data[:at] + bytes([data[at] ^ 1 << choose.randrange(8)]) + data[at + 1 :],
                data[:at] + choose.choice(b'0123456789"[]{},:- ').to_bytes(1) + data[at + 1 :],
                data[:at] + data[at + length :],
                data[:at] + data[other : other + 4 * length] + data[at:],
                data[:at] + choose.randbytes(length) + data[at + length :],
                data[:-length] if choose.random() < 0.5 else data + choose.randbytes(length),
            ]
        )
        end = max(1, min(end, len(data)))
        if len(data) < 9:
            break
    return data


def mutate_small_files(path: Path, seed: int, count: int) -> None:
    choose = random.Random(seed)
    originals = small_files()
    accepted = 0
    for _ in range(count):
        data = choose.choice(originals)
        accepted += check(path, mutated(data, choose, len(data)))
    assert 0 < accepted < count


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_file_is_read_as_the_library_reads_it_or_refused(path: Path, seed: int) -> None:
    mutate_small_files(path, seed, 500)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 120))
def test_a_mutated_file_is_read_as_the_library_reads_it_or_refused_for_long(
    path: Path, seed: int
) -> None:
    mutate_small_files(path, seed, 5_000)


def layout_by_us(path: Path) -> list[tuple[str, str, list[int]]] | None:
    try:
        with open_safetensors(path) as reader:
            return [(info.name, info.dtype, list(info.shape)) for info in reader.tensors]
    except FormatError as exc:
        return None if not any(re.search(known, exc.message) for known in STRICTER) else []


def layout_by_them(path: Path) -> list[tuple[str, str, list[int]]] | None:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            return [(n, str(s.get_dtype()), list(s.get_shape())) for n, s in slices.items()]
    except safetensors.SafetensorError:
        return None


def mutate_demo_file(source: Path, path: Path, seed: int, count: int) -> None:
    """Changes in the header, made in place: the file has megabytes behind it."""
    choose = random.Random(seed)
    original = source.read_bytes()
    head = 8 + int.from_bytes(original[:8], "little")
    shutil.copy(source, path)
    outcomes = set()
    for _ in range(count):
        data = mutated(original[:head], choose, choose.choice([8, head, head, head]))[:head]
        with path.open("r+b") as file:
            file.truncate(len(original) - choose.choice([0, 0, 0, 1, 2**20]))
            file.write(data.ljust(head))
        with ended_if_stuck():
            mine = layout_by_us(path)
        if mine != []:  # refused for a known reason
            assert mine == layout_by_them(path)
        outcomes.add(mine is None)
        with path.open("r+b") as file:
            file.truncate(len(original))
    assert outcomes == {True, False}


@pytest.mark.parametrize("source", DEMO, ids=lambda source: source.parent.name)
def test_a_mutated_header_of_a_real_model_is_read_alike_or_refused(
    path: Path, source: Path
) -> None:
    mutate_demo_file(source, path, 1, 150)


@pytest.mark.campaign
@pytest.mark.parametrize("source", DEMO, ids=lambda source: source.parent.name)
@pytest.mark.parametrize("seed", range(2, 7))
def test_a_mutated_header_of_a_real_model_is_read_alike_or_refused_for_long(
    path: Path, source: Path, seed: int
) -> None:
    mutate_demo_file(source, path, seed, 4_000)


# --- into a database -------------------------------------------------------------------------


@pytest.fixture
def store(database: str) -> Iterator[WeightStore]:
    codecs = {name: provided.item for name, provided in PluginManager().codecs.items()}
    with pool(database, 8) as opened:
        yield WeightStore(pool=opened, codecs=codecs)


def visible(database: str) -> dict[str, int]:
    with psycopg.connect(database) as conn:
        return {
            table: conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("models", "model_weights", "weight_sets", "weight_set_tensors")
        }


def registration(path: Path, name: str) -> Registration:
    return Registration(name=name, path=path, weight_format=SAFETENSORS)


def test_what_is_refused_leaves_nothing_in_the_database(
    store: WeightStore, database: str, tmp_path: Path
) -> None:
    choose, originals = random.Random(5), small_files()
    path, refused, accepted = tmp_path / "m.safetensors", 0, {}
    nothing = visible(database)
    assert set(nothing.values()) == {0}
    # Refused ones first: what is there afterwards is then only of those that were read.
    cases = [mutated(d, choose, len(d)) for d in choose.choices(originals, k=400)]
    for number, data in enumerate(cases):
        path.write_bytes(data)
        if ours(path)[0] is not None:
            accepted[number] = data
            continue
        with pytest.raises(FormatError):
            register(store, registration(path, f"m{number}@1"), DigestCache(None), Silent())
        refused += 1
    assert visible(database) == nothing
    assert refused > 50
    for number, data in accepted.items():
        path.write_bytes(data)
        done = register(store, registration(path, f"m{number}@1"), DigestCache(None), Silent())
        assert done.tensor_count == len(ours(path)[0] or {})
    assert visible(database)["models"] == len(accepted) > 5


class Cut:
    """Cuts the file off when its import begins, after it was read once."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes

    def task(self, label: str, size_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        if label.startswith("import"):
            with self.path.open("r+b") as file:
                file.truncate(self.size_bytes)
        return Silent().task(label, size_bytes)

    def done(self, line: str) -> None:
        pass


@pytest.mark.parametrize("kept", [0, 8, 200, 2**20, -1])
def test_a_file_that_is_cut_off_on_the_way_leaves_nothing_visible_and_a_rerun_completes(
    store: WeightStore, database: str, tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "m.safetensors"
    shutil.copy(DEMO[0], path)
    size_bytes = kept if kept >= 0 else path.stat().st_size + kept
    with pytest.raises(WeightsError):
        register(store, registration(path, "m@1"), DigestCache(None), Cut(path, size_bytes))
    assert set(visible(database).values()) == {0}
    shutil.copy(DEMO[0], path)
    done = register(store, registration(path, "m@1"), DigestCache(None), Silent())
    assert (done.action, done.tensor_count) == ("created", 39)
    assert visible(database)["model_weights"] == 39
