"""Models written in one file or in shards, and read again by us and by the safetensors library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import ArcHaloError
from arc_halo.formats.safetensors import arc_halo_weight_formats
from arc_halo.formats.sharding import split
from arc_halo.plugins import PluginManager
from arc_halo.store import builds
from arc_halo.store.connection import pool
from arc_halo.tensors.digests import tensor_digest, weights_root
from arc_halo.transfer.exporting import Exported, export_weights
from arc_halo.transfer.sources import DigestCache, source_facts
from arc_halo.types import ReadChunks, TensorInfo, WeightFormat
from arc_halo.weights.building import Recipe, build
from arc_halo.weights.store import WeightStore

(SAFETENSORS,) = arc_halo_weight_formats()
CONTENTS = {"b": bytes(range(100)), "a": b"x" * 60, "big": b"y" * 500, "e": b"", "c": b"z" * 100}
ROOT = weights_root((n, tensor_digest("U8", [len(raw)], raw)) for n, raw in CONTENTS.items())
METADATA = {"format": "pt"}

Export = Callable[..., Exported]


@pytest.fixture
def export(database: str, tmp_path: Path) -> Iterator[Export]:
    """Exports CONTENTS to `model.safetensors` in tmp_path."""
    codecs = {name: provided.item for name, provided in PluginManager().codecs.items()}
    with pool(database, 8) as opened:
        store = WeightStore(pool=opened, codecs=codecs)
        infos = [
            TensorInfo(name=name, dtype="U8", shape=(len(raw),), size_bytes=len(raw))
            for name, raw in CONTENTS.items()
        ]
        recipe = Recipe(purpose="write", key=bytes(32), recipe={})
        root = build(store, recipe, infos, lambda info: [CONTENTS[info.name]]).root
        with opened.connection() as conn:
            set_id = builds.sets_by_root(conn, [root])[root].id

        def exported(max_shard_bytes: int | None = None, form: WeightFormat = SAFETENSORS) -> Any:
            path = tmp_path / "model.safetensors"
            limit = max_shard_bytes
            return export_weights(
                store, set_id, path, form, metadata=METADATA, max_shard_bytes=limit
            )

        yield exported


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def shards(count: int) -> list[str]:
    return [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]


def by_reference(directory: Path) -> dict[str, bytes]:
    """The model as transformers finds it: the index says which file the library opens."""
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = {
        file: dict(safetensors.deserialize((directory / file).read_bytes()))
        for file in set(index["weight_map"].values())
    }
    assert sorted(name for held in files.values() for name in held) == sorted(index["weight_map"])
    return {name: bytes(files[file][name]["data"]) for name, file in index["weight_map"].items()}


def test_a_model_in_shards_is_the_same_model(export: Export, tmp_path: Path) -> None:
    done = export(200)
    index = tmp_path / "model.safetensors.index.json"
    assert done.files == (index, *(tmp_path / name for name in shards(3)))
    assert (done.tensor_count, done.size_bytes) == (5, 760)
    assert names_in(tmp_path) == sorted([*shards(3), index.name])
    document = json.loads(index.read_text())
    assert document["metadata"] == {"total_size": 760}
    first, second, third = shards(3)
    assert document["weight_map"] == {"a": first, "b": first, "big": second, "e": third, "c": third}
    assert by_reference(tmp_path) == CONTENTS
    assert source_facts(tmp_path, SAFETENSORS, DigestCache(None)).root == ROOT
    assert source_facts(index, SAFETENSORS, DigestCache(None)).metadata == METADATA
    with safetensors.safe_open(tmp_path / second, framework="np") as file:
        assert file.metadata() == METADATA
        assert file.get_tensor("big").tobytes() == CONTENTS["big"]


def test_a_model_that_fits_is_one_file(export: Export, tmp_path: Path) -> None:
    assert export(760).files == (tmp_path / "model.safetensors",)
    assert names_in(tmp_path) == ["model.safetensors"]
    assert source_facts(tmp_path, SAFETENSORS, DigestCache(None)).root == ROOT


@pytest.mark.parametrize("first", [None, 1, 100, 200])
@pytest.mark.parametrize("second", [None, 1, 200])
def test_what_an_earlier_export_left_is_gone_after_the_next(
    export: Export, tmp_path: Path, first: int | None, second: int | None
) -> None:
    others = ["adapter.safetensors", "model-1.safetensors", "model-00001-of-00002.bin"]
    for name in others:
        (tmp_path / name).write_text("mine")
    export(first)
    done = export(second)
    assert names_in(tmp_path) == sorted([*others, *(path.name for path in done.files)])
    model = tmp_path / ("model.safetensors" if second is None else "model.safetensors.index.json")
    assert source_facts(model, SAFETENSORS, DigestCache(None)).root == ROOT


def failing_at(number: int) -> WeightFormat:
    """The format, but the shard of that number cannot be written to its end."""
    assert SAFETENSORS.write is not None
    write = SAFETENSORS.write
    calls = iter(range(100))

    def written(
        path: Path, tensors: Sequence[TensorInfo], metadata: Mapping[str, str], read: ReadChunks
    ) -> None:
        write(path, tensors, metadata, read)
        if next(calls) == number:
            raise KeyboardInterrupt

    return WeightFormat(
        name="failing", version=1, summary="", suffixes=SAFETENSORS.suffixes,
        open=SAFETENSORS.open, write=written,
    )  # fmt: skip


@pytest.mark.parametrize("before", [None, 100, 200])
def test_an_interrupted_export_leaves_what_was_there(
    export: Export, tmp_path: Path, before: int | None
) -> None:
    files = {path: path.read_bytes() for path in export(before).files}
    with pytest.raises(KeyboardInterrupt):
        export(200, failing_at(2))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_an_index_never_leads_to_shards_of_two_exports(export: Export, tmp_path: Path) -> None:
    export(200)
    # In the way of the last shard, so that the first two are in their places when it fails.
    last = tmp_path / shards(3)[2]
    last.unlink()
    last.mkdir()
    with pytest.raises(ArcHaloError, match=r"00003-of-00003.safetensors: cannot be written"):
        export(200)
    assert not (tmp_path / "model.safetensors.index.json").exists()
    last.rmdir()
    export(200)
    assert by_reference(tmp_path) == CONTENTS


def test_a_directory_that_is_not_there_is_a_named_error(export: Export, tmp_path: Path) -> None:
    tmp_path.rmdir()
    with pytest.raises(ArcHaloError, match="cannot be written: No such file"):
        export(200)


def test_a_format_without_an_index_has_no_shards(export: Export) -> None:
    plain = WeightFormat(
        name="plain", version=1, summary="", suffixes=(".plain",), open=SAFETENSORS.open,
        write=SAFETENSORS.write,
    )  # fmt: skip
    with pytest.raises(ArcHaloError, match="'plain' has no shards") as caught:
        export(200, plain)
    assert caught.value.error_code == "AH032"


@given(sizes=st.lists(st.integers(0, 30), max_size=20), limit=st.integers(1, 40))
def test_shards_keep_order_and_limit_and_are_as_full_as_can_be(
    sizes: list[int], limit: int
) -> None:
    tensors = [
        TensorInfo(name=str(i), dtype="U8", shape=(size,), size_bytes=size)
        for i, size in enumerate(sizes)
    ]
    made = split(tensors, limit)
    assert [tensor for shard in made for tensor in shard] == tensors
    totals = [sum(tensor.size_bytes for tensor in shard) for shard in made]
    for shard, total in zip(made, totals, strict=True):
        assert total <= limit or sum(tensor.size_bytes > 0 for tensor in shard) == 1
    for shard, total, following in zip(made, totals, made[1:], strict=False):
        assert shard
        assert total + following[0].size_bytes > limit
