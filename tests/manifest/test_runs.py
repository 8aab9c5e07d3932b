"""What a reactor says of its runs, and what of it would change nothing or never work."""

from __future__ import annotations

import pytest

from arc_halo.errors import ManifestError
from arc_halo.manifest.reading import read_manifest
from arc_halo.manifest.resolve import resolve

HEAD = """version: 1
project: p
models:
  a@1: {type: other}
  b@1: {type: other}
reactors:
"""


def problems(directory, type_, run, role="secondary"):
    members = f"[{{model: a}}, {{model: b, role: {role}}}]"
    reactor = f"{{type: {type_}, strategy: weighted_average, members: {members}, run: {run}}}"
    (directory / "arc_halo.yaml").write_text(f"{HEAD}  r: {reactor}\n")
    manifest = read_manifest(directory, env={})
    try:
        resolve(manifest.sources, manifest.plugins)
    except ManifestError as exc:
        return [(each.code, each.message) for each in exc.problems]
    return []


@pytest.mark.parametrize(
    ("type_", "run", "message"),
    [
        ("ensemble", "{threshold: 0.5}", "threshold: it changes nothing in a reactor of type ens"),
        ("cascade", "{choose: best}", "choose: it changes nothing in a reactor of type cascade"),
        ("cascade", "{quorum: 2}", "quorum: it changes nothing in a cascade"),
        ("ensemble", "{fallback: a}", "fallback: it changes nothing with `on_failure: fail`"),
        ("parallel", "{record: none, record_ttl: 9}", "record_ttl: it changes nothing with `rec"),
        ("ensemble", "{quorum: 3}", "quorum: 3 of 2 members"),
    ],
)
def test_what_changes_nothing_or_never_works_is_told(tmp_path, type_, run, message):
    ((code, told),) = problems(tmp_path, type_, run)
    assert code == "AH023"
    assert told.startswith(message)


def test_validators_make_no_quorum(tmp_path):
    assert problems(tmp_path, "ensemble", "{quorum: 2}") == []
    ((_, told),) = problems(tmp_path, "ensemble", "{quorum: 2}", "validator")
    assert told == "quorum: 2 of 1 members, validators aside"


def test_a_reactor_of_validators_alone_is_told(tmp_path):
    members = "[{model: a, role: validator}]"
    text = f"{HEAD}  r: {{type: parallel, strategy: weighted_average, members: {members}}}\n"
    (tmp_path / "arc_halo.yaml").write_text(text)
    manifest = read_manifest(tmp_path, env={})
    with pytest.raises(ManifestError, match="all members are validators: nobody answers"):
        resolve(manifest.sources, manifest.plugins)


@pytest.mark.parametrize(
    ("type_", "run"),
    [
        ("cascade", "{threshold: 0.5, quorum: 1}"),
        ("parallel", "{choose: best, quorum: 2}"),
        ("hierarchical", "{on_failure: fallback, fallback: b, record_ttl: 9, record: digest}"),
    ],
)
def test_what_makes_sense_is_fine(tmp_path, type_, run):
    assert problems(tmp_path, type_, run) == []
