"""What a source of weights is, and how much of it is read again."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from arc_halo.errors import ArcHaloError, FormatError, WeightsError
from arc_halo.formats.safetensors import arc_halo_weight_formats
from arc_halo.tensors.digests import tensor_digest, weights_root
from arc_halo.transfer.sources import DigestCache, SourceFacts, source_facts

(SAFETENSORS,) = arc_halo_weight_formats()


def write(path: Path, tensors: Mapping[str, bytes]) -> Path:
    header, body = {}, b""
    for name, raw in tensors.items():
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": "U8", "shape": [len(raw)], "data_offsets": offsets}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def root(tensors: Mapping[str, bytes]) -> bytes:
    return weights_root((n, tensor_digest("U8", [len(raw)], raw)) for n, raw in tensors.items())


def facts(path: Path, cache: DigestCache, read: list[int] | None = None) -> SourceFacts:
    return source_facts(path, SAFETENSORS, cache, advance=None if read is None else read.append)


def test_a_source_is_named_by_its_weights_and_not_by_their_order(tmp_path: Path) -> None:
    tensors = {"b": b"12", "a": b"x" * 3_000_000}
    found = facts(write(tmp_path / "m.safetensors", tensors), DigestCache(None))
    assert (found.root, found.tensor_count, found.size_bytes) == (root(tensors), 2, 3_000_002)
    turned = write(tmp_path / "n.safetensors", dict(reversed(tensors.items())))
    assert facts(turned, DigestCache(None)).root == found.root


def test_shards_are_one_source(tmp_path: Path) -> None:
    write(tmp_path / "1.safetensors", {"a": b"1"})
    write(tmp_path / "2.safetensors", {"b": b"22"})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    cache = DigestCache(tmp_path / "cache.json")
    assert facts(index, cache).root == root({"a": b"1", "b": b"22"})
    write(tmp_path / "2.safetensors", {"b": b"333"})
    assert facts(index, cache).root == root({"a": b"1", "b": b"333"})


def test_a_file_is_read_once_for_as_long_as_it_stays_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": b"1" * 100})
    file = tmp_path / "deep" / "cache.json"
    read: list[int] = []
    for _ in range(3):
        cache = DigestCache(file)
        facts(path, cache, read)
        cache.save()
    assert read == [100]


@pytest.mark.parametrize("change", ["bytes", "size", "time", "inode"])
def test_a_file_that_changed_is_read_again(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "m.safetensors", {"a": b"1" * 100})
    cache = DigestCache(tmp_path / "cache.json")
    facts(path, cache)
    stat = path.stat()
    new = {"a": b"2" * 100} if change == "bytes" else {"a": b"1" * 100}
    if change == "size":
        new = {"a": b"1" * 101}
    if change == "inode":
        other = write(tmp_path / "other", new)
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        other.replace(path)
    else:
        write(path, new)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    read: list[int] = []
    assert facts(path, cache, read).root == root(new)
    assert read


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": b"1" * 100})

    def advance(size_bytes: int) -> None:
        os.utime(path, ns=(1, 1))

    cache = DigestCache(tmp_path / "cache.json")
    with pytest.raises(WeightsError, match="changed while it was read"):
        source_facts(path, SAFETENSORS, cache, advance=advance)
    assert cache.get(path, "safetensors") is None


def test_a_cache_that_cannot_be_written_is_gone_without(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": b"1"})
    cache = DigestCache(path / "not a directory" / "cache.json")
    assert facts(path, cache).root == root({"a": b"1"})
    cache.save()
    assert list(tmp_path.iterdir()) == [path]


def test_a_shard_outside_of_the_project_is_refused(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    outside = write(tmp_path / "secret.safetensors", {"a": b"1"})
    (project / "1.safetensors").symlink_to(outside)
    index = project / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    with pytest.raises(FormatError) as caught:
        source_facts(index, SAFETENSORS, DigestCache(None), roots=[project])
    assert caught.value.error_code == "AH012"


def test_a_shard_outside_is_refused_although_its_digest_is_known(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": b"1"})
    cache = DigestCache(None)
    assert source_facts(path, SAFETENSORS, cache, roots=[tmp_path]).tensor_count
    with pytest.raises(FormatError) as caught:
        source_facts(path, SAFETENSORS, cache, roots=[tmp_path / "elsewhere"])
    assert caught.value.error_code == "AH012"


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 9])
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArcHaloError, match=r"m\.safetensors") as caught:
        facts(path, DigestCache(None))
    assert caught.value.exit_code == 4
