"""Caches in a manifest: what they come to, and what is refused of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from arc_halo.config import parse_duration, parse_size
from arc_halo.errors import InvalidInputError, ManifestError
from arc_halo.manifest.caches import as_written
from arc_halo.manifest.documents import CacheSpec
from arc_halo.manifest.reading import read_manifest
from arc_halo.manifest.resolve import resolve
from arc_halo.types import Key


def specs(directory: Path, text: str) -> dict[str, CacheSpec]:
    (directory / "arc_halo.yaml").write_text(f"version: 1\nproject: p\n{text}\n")
    manifest = read_manifest(directory, env={})
    found = resolve(manifest.sources, manifest.plugins).declarations
    return {
        key.name: declaration.spec
        for key, declaration in found.items()
        if isinstance(declaration.spec, CacheSpec) and key == Key(kind="inference", name=key.name)
    }


def test_caches_have_defaults(tmp_path: Path) -> None:
    found = specs(
        tmp_path, "inference: {kv_cache: {}, activation_cache: {}, attention_patterns: {}}"
    )
    assert found == {
        "kv_cache": CacheSpec(budget=4 * 2**30, block_tokens=64, codec="planes"),
        "activation_cache": CacheSpec(budget=2 * 2**30),
        "attention_patterns": CacheSpec(budget=2**30),
    }


def test_sizes_are_bytes_and_durations_are_seconds(tmp_path: Path) -> None:
    text = (
        "inference: {kv_cache: {budget: 10GiB, ttl: 7d, block_tokens: 32, codec: int8,"
        " quota: 1kB, quotas: {acme: 2GiB}}}"
    )
    assert specs(tmp_path, text)["kv_cache"] == CacheSpec(
        budget=10 * 2**30,
        ttl=7 * 86400,
        block_tokens=32,
        codec="int8",
        quota=1000,
        quotas={"acme": 2 * 2**30},
    )


@pytest.mark.parametrize(
    ("block", "code", "message"),
    [
        ("{quota: 5GiB}", "AH007", "inference.kv_cache.quota: 5GiB is more than the budget, 4GiB"),
        (
            "{budget: 1MiB, quotas: {a: 2048KiB}}",
            "AH007",
            "inference.kv_cache.quotas.a: 2MiB is more than the budget, 1MiB",
        ),
        ("{quota: 0}", "AH007", "inference.kv_cache.quota: 0 is less than the minimum of 1"),
        ("{budget: 1023KiB}", "AH007", "inference.kv_cache.budget: 1023KiB is less than 1MiB"),
        ("{codec: delta}", "AH006", "inference.kv_cache.codec: 'delta' keeps deltas"),
        ("{ttl: 100000w}", "AH006", "inference.kv_cache.ttl: '100000w' is not a duration"),
        ("{renamed_from: other}", "AH003", "unknown field 'renamed_from'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, block: str, code: str, message: str
) -> None:
    with pytest.raises(ManifestError) as refused:
        specs(tmp_path, f"inference: {{kv_cache: {block}}}")
    (problem,) = refused.value.problems
    assert problem.code == code
    assert message in problem.message


def test_a_cache_is_declared_once(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("inference: {kv_cache: {}}")
    with pytest.raises(ManifestError) as refused:
        specs(tmp_path, "include: [more.yaml]\ninference: {kv_cache: {}}")
    assert [problem.code for problem in refused.value.problems] == ["AH013"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("12 h", 43200), ("7d", 604800), ("1w", 604800)],
)
def test_these_are_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7y", "-1d", "1.5h", "1234567s"])
def test_these_are_none(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["100MiB", "1500MB", "1023B", "10GiB", "1kB", "3TiB", "1536KiB"])
def test_a_size_is_told_as_it_is_written(text: str) -> None:
    assert as_written("quotas.acme", parse_size(text)) == text


@pytest.mark.parametrize("text", ["7d", "36h", "90s", "15m", "30d"])
def test_a_time_is_told_as_it_is_written(text: str) -> None:
    assert as_written("ttl", parse_duration(text)) == text


def test_what_is_no_size_is_told_as_it_is() -> None:
    found = {"ttl": None, "block_tokens": 1024, "quotas": {"acme": 2**20}, "tags": {"cost": 1024}}
    assert {name: as_written(name, value) for name, value in found.items()} == {
        **found,
        "quotas": {"acme": "1MiB"},
    }


def test_a_number_too_large_is_not_written_out_in_the_hint(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as refused:
        specs(tmp_path, "inference: {kv_cache: {budget: 1e99}}")
    (problem,) = refused.value.problems
    assert problem.hint == "write a number and a unit, such as 256MiB"


def test_what_python_calls_storage_is_told_to_be_the_codec(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as refused:
        specs(tmp_path, "inference: {kv_cache: {storage: int8}}")
    (problem,) = refused.value.problems
    assert (problem.code, problem.hint) == ("AH003", "write codec")
