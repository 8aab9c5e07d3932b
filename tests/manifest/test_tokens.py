"""What a reactor says of tokens, and where it may not."""

from __future__ import annotations

import pytest

from arc_halo.errors import ManifestError
from arc_halo.manifest.reading import read_manifest
from arc_halo.manifest.resolve import resolve
from arc_halo.types import Key

HEAD = """version: 1
project: p
models:
  a: {version: 1.0.0, type: other}
reactors:
"""


def resolved(directory, reactor):
    (directory / "arc_halo.yaml").write_text(f"{HEAD}  r: {reactor}\n")
    manifest = read_manifest(directory, env={})
    return resolve(manifest.sources, manifest.plugins)


def reactor(type_, run):
    return f"{{type: {type_}, strategy: weighted_average, members: [{{model: a}}], run: {run}}}"


def test_how_tokens_are_chosen_has_defaults(tmp_path):
    declared = resolved(tmp_path, reactor("ensemble", "{level: tokens, seed: 3, stop: [x]}"))
    run = declared.declarations[Key(kind="reactor", name="r")].spec.run
    assert {name: run[name] for name in ("level", "max_tokens", "temperature", "seed", "stop")} == {
        "level": "tokens", "max_tokens": 64, "temperature": 0, "seed": 3, "stop": ["x"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("type_", "run", "message"),
    [
        ("cascade", "{level: tokens}", "level: a reactor of type cascade fuses no tokens"),
        ("ensemble", "{seed: 3}", "seed: this reactor does not write token by token"),
        ("ensemble", "{level: answers, stop: [x]}", "stop: this reactor does not write"),
        ("ensemble", "{level: words}", "words"),
        ("ensemble", "{level: tokens, max_tokens: 0}", "less than the minimum of 1"),
        ("ensemble", "{level: tokens, temperature: -1}", "less than the minimum of 0"),
        ("ensemble", "{level: tokens, stop: ['']}", "stop"),
    ],
)
def test_what_makes_no_sense_of_tokens_is_told(tmp_path, type_, run, message):
    with pytest.raises(ManifestError) as caught:
        resolved(tmp_path, reactor(type_, run))
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.line == 6
