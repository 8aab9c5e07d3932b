"""`renamed_from`: names that cannot have been given up are told before there is any plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from arc_halo.errors import ManifestError
from arc_halo.manifest.reading import read_manifest
from arc_halo.manifest.resolve import resolve


def problems(directory: Path, text: str) -> list[tuple[str, str, int]]:
    (directory / "arc_halo.yaml").write_text(f"version: 1\nproject: p\n{text}")
    manifest = read_manifest(directory, env={})
    try:
        resolve(manifest.sources, manifest.plugins)
    except ManifestError as exc:
        return [(problem.code, problem.message, problem.line) for problem in exc.problems]
    return []


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        (
            "models:\n  b@1: {type: other, renamed_from: a}\n  a@1: {type: other}\n",
            "model/a@1 is declared still, so that nothing is renamed from it",
            4,
        ),
        (
            "strategies:\n  b: {uses: linear, renamed_from: b}\n",
            "strategy/b is declared still, so that nothing is renamed from it",
            4,
        ),
        (
            (
                "models:\n  b@1: {type: other, renamed_from: a}\n"
                "  c@2: {type: other, renamed_from: a@1}\n"
            ),
            "model/b@1 is renamed from a@1 too",
            5,
        ),
    ],
    ids=["declared", "itself", "twice"],
)
def test_a_name_that_nobody_or_somebody_else_gave_up_is_told(
    tmp_path: Path, text: str, message: str, line: int
) -> None:
    assert problems(tmp_path, text) == [("AH013", message, line)]


def test_who_still_uses_an_old_name_is_told_the_new_one(tmp_path: Path) -> None:
    text = (
        "models:\n  viper@1: {type: other, renamed_from: python}\ntraining:\n  t: {model: python}\n"
    )
    (tmp_path / "arc_halo.yaml").write_text(f"version: 1\nproject: p\n{text}")
    manifest = read_manifest(tmp_path, env={})
    with pytest.raises(ManifestError) as caught:
        resolve(manifest.sources, manifest.plugins)
    (problem,) = caught.value.problems
    assert (problem.code, problem.hint) == ("AH020", "it is called viper@1 now")


def test_other_versions_and_other_kinds_are_other_names(tmp_path: Path) -> None:
    text = (
        "models:\n  b@1: {type: other, renamed_from: a}\n  b@2: {type: other, renamed_from: a}\n"
        "  a@3: {type: other}\nstrategies:\n  a: {uses: linear}\n"
    )
    assert problems(tmp_path, text) == []
