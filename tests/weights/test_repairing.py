"""Repair: what the original file has is as it was, what it has not stays damaged and is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from arc_halo.cli.invocation import Invocation
from arc_halo.cli.tensors.gc import gc, parse_grace
from arc_halo.cli.tensors.verify import parse_share
from arc_halo.cli.tensors.verify import verify as command
from arc_halo.errors import CorruptChunkError, FormatError, UsageError
from arc_halo.tensors.digests import LEAF_BYTES
from arc_halo.types import TensorInfo
from arc_halo.weights.repairing import repair
from arc_halo.weights.store import OpenBodies, WeightStore
from arc_halo.weights.verifying import verify, verify_again
from tests.weights.sets import infos, made, noise, stored

Sql = Callable[..., list[tuple[Any, ...]]]
Tamper = Callable[..., int]
Raw = dict[str, bytes]

FLIP_ALL = "UPDATE chunk_bodies SET body = set_byte(body, 0, 255 - get_byte(body, 0))"

DELETE_ALL = "DELETE FROM chunk_bodies"
SPOIL_ALL = "UPDATE chunk_bodies SET raw_bytes = 9, codec = 'lost'"


RAW = {"layer": noise("layer", 600_000), "head": noise("head", 262_144), "scale": b"\0\0\x80\x3f"}


def healed(store: WeightStore, raw: Raw, piece: int = 100_000) -> tuple[int, int]:
    """How many chunks were written again from `raw`, and how many things are damaged still."""

    def produce(info: TensorInfo) -> Iterator[bytes]:
        for start in range(0, info.size_bytes, piece):
            yield raw[info.name][start : start + piece]

    findings = verify(store).findings
    assert findings
    done = repair(store, findings, infos(raw), produce)
    left = verify_again(store, findings)
    assert left == verify(store).findings
    return len(done), len(left)


@pytest.mark.parametrize("chunk_bytes", [LEAF_BYTES, 100_000, 7_777])
@pytest.mark.parametrize("damage", [FLIP_ALL, DELETE_ALL, SPOIL_ALL])
def test_everything_is_healed_from_the_original(
    make_store: Callable[..., WeightStore], tamper: Tamper, chunk_bytes: int, damage: str
) -> None:
    store = make_store(chunk_bytes=chunk_bytes)
    root = made(store, RAW)
    count = tamper(damage)
    assert healed(store, RAW) == (count, 0)
    assert stored(store, root) == RAW


def test_a_tensor_of_another_name_heals_as_well(store: WeightStore, tamper: Tamper) -> None:
    root = made(store, RAW)
    tamper(FLIP_ALL)
    assert healed(store, {f"model.{name}": data for name, data in RAW.items()}) == (5, 0)
    assert stored(store, root) == RAW


def test_what_the_file_has_not_stays_damaged_and_the_rest_is_healed(
    store: WeightStore, tamper: Tamper
) -> None:
    root = made(store, RAW)
    tamper(FLIP_ALL)
    other = {"layer": RAW["layer"][:-1] + b"?", "head": RAW["head"]}
    assert healed(store, other) == (3, 2)
    with pytest.raises(CorruptChunkError):
        stored(store, root)
    assert healed(store, RAW) == (2, 0)
    assert stored(store, root) == RAW


def test_what_is_whole_is_not_written_again(store: WeightStore, sql: Sql, tamper: Tamper) -> None:
    made(store, RAW)
    before = dict(sql("SELECT digest, xmin::text FROM chunk_bodies"))
    ((digest,),) = sql("SELECT digest FROM chunk_bodies WHERE raw_bytes = 4")
    tamper(f"{FLIP_ALL} WHERE digest = %s", digest)
    assert healed(store, RAW) == (1, 0)
    after = dict(sql("SELECT digest, xmin::text FROM chunk_bodies"))
    assert {d for d in after if before[d] != after[d]} == {digest}


@pytest.mark.parametrize("damage", [FLIP_ALL, DELETE_ALL])
@pytest.mark.parametrize("source", ["base", "tuned"])
def test_a_damaged_base_is_healed_or_its_deltas_are_made_free_of_it(
    store: WeightStore, sql: Sql, tamper: Tamper, source: str, damage: str
) -> None:
    base = {"t": RAW["layer"]}
    tuned = {"t": bytes(b ^ (place % 997 == 0) for place, b in enumerate(RAW["layer"]))}
    of_base = made(store, base)
    of_tuned = made(store, tuned, delta_from=of_base)
    assert tamper(f"{damage} WHERE base_digest IS NULL") == 3
    if source == "base":
        assert healed(store, base) == (3, 0)
        assert sql("SELECT count(*) FROM chunk_bodies WHERE base_digest IS NOT NULL") == [(3,)]
        assert stored(store, of_base) == base
    else:
        assert healed(store, tuned) == (3, 3)
    assert stored(store, of_tuned) == tuned


class Bodies:
    """A body store in memory."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    def put(self, bodies: Mapping[bytes, bytes | memoryview]) -> None:
        self.kept |= {digest: bytes(body) for digest, body in bodies.items()}

    def get(self, digests: Sequence[bytes]) -> Mapping[bytes, bytes | memoryview]:
        return {digest: self.kept[digest] for digest in digests if digest in self.kept}

    def pages(self, *, older_than: timedelta) -> Iterator[Sequence[bytes]]:
        yield list(self.kept)

    def delete(self, digests: Sequence[bytes]) -> None:
        for digest in digests:
            self.kept.pop(digest, None)

    def claim(self, marker: str) -> str:
        return marker


def test_bodies_are_healed_where_they_are_kept(
    make_store: Callable[..., WeightStore], sql: Sql
) -> None:
    bodies = Bodies()
    ((store_id,),) = sql(
        "INSERT INTO body_stores (kind, url) VALUES ('object', 'memory:') RETURNING id"
    )
    store = make_store(bodies=OpenBodies(store_id=store_id, bodies=bodies))
    root = made(store, RAW)
    whole = dict(bodies.kept)
    first, second, *_ = bodies.kept
    del bodies.kept[first]
    bodies.kept[second] = b"?"
    assert healed(store, RAW) == (2, 0)
    assert bodies.kept == whole
    assert sql("SELECT count(*) FROM chunk_bodies WHERE body IS NOT NULL") == [(0,)]
    assert stored(store, root) == RAW


@pytest.fixture
def run(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Result, Any]]:
    """Runs a command on the database; what came of it, and its JSON where it printed any."""
    monkeypatch.chdir(tmp_path)

    def ran(cli: Any, *arguments: str, output: str = "json") -> tuple[Result, Any]:
        invocation = Invocation(database_url=database, output=output, quiet=True)  # type: ignore[arg-type]
        result = CliRunner().invoke(cli, list(arguments), obj=invocation)
        is_json = output == "json" and result.stdout.startswith("{")
        return result, json.loads(result.stdout) if is_json else result.stdout

    return ran


@pytest.fixture
def story(store: WeightStore, sql: Sql, write_file: Callable[..., Path]) -> tuple[bytes, Path]:
    """The root of a model, and the file it came from."""
    root = made(store, RAW)
    sql(
        "INSERT INTO models (model_name, version, model_type, architecture_config, weight_set_id,"
        " status) SELECT 'story', '1', 'other', '{}', id, 'ready' FROM weight_sets RETURNING 1"
    )
    file = write_file({name: ("U8", (len(data),), data) for name, data in RAW.items()})
    return root, file


def test_the_command_says_what_is_damaged_and_whose(
    run: Callable[..., Any], story: tuple[bytes, Path], tamper: Tamper
) -> None:
    result, facts = run(command)
    assert (result.exit_code, facts["chunks"], facts["damaged"]) == (0, 5, [])
    tamper(f"{FLIP_ALL} WHERE raw_bytes = 4")
    result, facts = run(command, "story")
    assert result.exit_code == 1
    assert isinstance(result.exception, CorruptChunkError)
    (damaged,) = facts["damaged"]
    assert damaged["digest"] == "sha256:" + hashlib.sha256(RAW["scale"]).hexdigest()
    assert damaged["codec"] == "raw"
    assert damaged["touches"] == [{"tensor": "scale", "kind": "model", "name": "story@1"}]
    _, text = run(command, output="text")
    assert "scale of model story@1" in text
    _, text = run(command, output="markdown")
    assert "| chunk |" in text


def test_the_command_heals_from_the_file(
    run: Callable[..., Any],
    store: WeightStore,
    story: tuple[bytes, Path],
    tamper: Tamper,
    write_file: Callable[..., Path],
) -> None:
    root, file = story
    tamper(f"{FLIP_ALL} WHERE raw_bytes > 4")
    tamper("DELETE FROM chunk_bodies WHERE raw_bytes = 4")
    part = write_file({"head": ("U8", (262_144,), RAW["head"])}, file="part.safetensors")
    result, facts = run(command, "--repair-from", str(part))
    assert result.exit_code == 1
    assert (len(facts["healed"]), len(facts["damaged"])) == (1, 4)
    result, facts = run(command, "--repair-from", str(part), "--repair-from", str(file))
    assert result.exit_code == 0
    assert (len(facts["healed"]), facts["damaged"]) == (4, [])
    assert stored(store, root) == RAW
    result, facts = run(command, "--repair-from", str(file), "--sample", "50%")
    assert (result.exit_code, facts["healed"]) == (0, [])


def test_a_file_of_no_known_format_is_refused_before_anything_is_read(
    run: Callable[..., Any], story: tuple[bytes, Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("?")
    result, _ = run(command, "--repair-from", "notes.txt")
    assert isinstance(result.exception, FormatError)


@pytest.mark.parametrize("text", ["0", "0%", "101%", "5 per cent", "-1", "", "nan"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_share(text)


def test_shares_are_percentages() -> None:
    assert [parse_share(text) for text in ("5%", "5", "0.5 %", "100%")] == [0.05, 0.05, 0.005, 1.0]


def test_collection_tells_the_same_before_and_after(
    run: Callable[..., Any], story: tuple[bytes, Path], sql: Sql
) -> None:
    sql("DELETE FROM models RETURNING 1")
    _, nothing = run(gc)
    assert nothing["chunks"] == 0
    _, told = run(gc, "--grace", "0", "--dry-run")
    assert sql("SELECT count(*) FROM chunk_bodies") == [(5,)]
    _, text = run(gc, "--grace", "0", "--dry-run", output="text")
    assert "Nothing was deleted" in text
    result, done = run(gc, "--grace", "0", "--batch", "2")
    assert (result.exit_code, done["weight_sets"], done["chunks"]) == (0, 1, 5)
    assert {**told, "dry_run": False} == done
    assert sql("SELECT count(*) FROM chunk_bodies") == [(0,)]
    _, text = run(gc, output="text")
    assert text == "Nothing to collect.\n"


def test_periods_of_grace() -> None:
    assert [str(parse_grace(text)) for text in ("0", "90m", "24h", "7d", "1w", "30s", "0h")] == [
        "0:00:00",
        "1:30:00",
        "1 day, 0:00:00",
        "7 days, 0:00:00",
        "7 days, 0:00:00",
        "0:00:30",
        "0:00:00",
    ]


@pytest.mark.parametrize("text", ["", "h", "1", "-1h", "1.5h", "999999999w", "1y"])
def test_a_period_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_grace(text)
    assert refused.value.hint == "write 30s, 90m, 24h, 7d, 2w, or 0 for none"
