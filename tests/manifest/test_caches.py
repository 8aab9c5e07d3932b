"""Caches in a manifest: what they come to, and what is refused of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from arc_halo.config import parse_duration
from arc_halo.errors import InvalidInputError, ManifestError
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
        ("{quota: 5GiB}", "AH007", "quota: it is more than the budget"),
        ("{budget: 1MiB, quotas: {a: 2MiB}}", "AH007", "quotas.a: it is more than the budget"),
        ("{codec: delta}", "AH006", "codec: 'delta' keeps deltas"),
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
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("12 h", 43200), ("7d", 604800)]
)
def test_these_are_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7w", "-1d", "1.5h", "1234567s"])
def test_these_are_none(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_duration(text)
