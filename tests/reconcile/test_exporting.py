"""A manifest written from the database plans to no changes, whatever was applied."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from arc_halo import connect
from arc_halo.cli.main import run
from arc_halo.errors import InvalidInputError, ManifestError, NotFoundError
from arc_halo.manifest.writing import mapping_lines
from arc_halo.reconcile import exporting
from arc_halo.reconcile.exporting import ExportedManifest
from tests.manifest.test_rendering import ODD, TEXTS
from tests.reconcile.test_convergence import Manifest, manifests
from tests.reconcile.test_convergence import workshop as shelf  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

ROUNDS = st.fixed_dictionaries(
    {},
    optional={
        "timeout": st.sampled_from([1, 0.5, 86400]),
        "quorum": st.just(1),
        "record": st.sampled_from(["full", "digest"]),
        "record_ttl": st.sampled_from([60, 1e-3]),
        "on_failure": st.sampled_from(["skip", "fail"]),
    },
)
RULES = st.lists(
    st.fixed_dictionaries(
        {"match": st.sampled_from(["*", ["t", "*"], "[t]"])},
        optional={"weights": st.sampled_from([{"a@1": 2}, {"a@1": 1e-9}])},
    ),
    max_size=2,
)


@st.composite
def rich(draw: st.DrawFn) -> Manifest:
    """What the test of convergence draws, and texts, settings and fields that are hard to write."""
    manifest = draw(manifests())
    for model in manifest["models"].values():
        model |= draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "description": TEXTS,
                    "tags": st.dictionaries(TEXTS.filter(bool), TEXTS | st.floats(-9, 9)),
                    "architecture": st.sampled_from(
                        [{text: [text] for text in ODD}, {"a": [[], {}, [[None]]], "b": 1e22}]
                    ),
                    "ignore": st.sampled_from([[], ["tags", "weights"]]),
                },
            )
        )
    for reactor in manifest["reactors"].values():
        reactor |= draw(st.sampled_from([{}, {"compute": "F64"}, {"out_dtype": "F32"}]))
        if reactor["members"][0]["model"] == "a@1":
            reactor["tensors"] = draw(RULES)
    known = list(manifest["models"])
    if known and draw(st.booleans()):
        manifest["strategies"] = {
            **manifest["strategies"],
            "mine": {"uses": "voting", "description": draw(TEXTS)},
        }
        manifest["reactors"]["ask"] = {
            "type": draw(st.sampled_from(["ensemble", "parallel", "hierarchical"])),
            "strategy": draw(st.sampled_from(["mine", "voting"])),
            "params": draw(st.sampled_from([{}, {"ties": "primary"}])),
            "members": [{"model": known[0], "cost": draw(st.sampled_from([1, 0.25]))}],
            "run": draw(ROUNDS),
            "config": draw(st.dictionaries(TEXTS, TEXTS | st.integers(-(2**63), 2**63 - 1))),
        }
    return manifest


def exported(workshop: Any, **options: Any) -> ExportedManifest:
    with workshop.project() as project:
        return project.export_manifest(**options)


def check_round_trip(workshop: Any, **options: Any) -> ExportedManifest:
    """Put what was exported in the place of the manifest; it must plan to nothing."""
    found = exported(workshop, **options)
    for label, text in found.files.items():
        path = workshop.directory / label
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, newline="")
    plan = workshop.plan()
    assert (plan.changes, plan.conflicts, plan.orphans) == ((), (), ())
    assert exported(workshop, **options) == found
    return found


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(manifest=rich().filter(lambda drawn: drawn["models"]))
def test_what_was_applied_is_exported_and_plans_to_nothing(
    shelf: Any,  # noqa: F811
    manifest: Manifest,
) -> None:
    lines = mapping_lines({"version": 1, "project": "work", **manifest})
    (shelf.directory / "arc_halo.yaml").write_text("\n".join(lines), newline="")
    shelf.destroy()
    shelf.apply()
    found = check_round_trip(shelf)
    assert found.notes == ()
    assert "arc_halo.yaml" in found.files


TENSOR = {"t": np.arange(6, dtype=np.float32).reshape(3, 2)}


@pytest.fixture
def work(workshop: Any) -> Any:
    workshop.weights("1.safetensors", TENSOR)
    workshop.weights("2.bin", {"t": 2 * TENSOR["t"]})
    return workshop


def test_what_becomes_of_resources_stays_and_renames_are_done(work: Any) -> None:
    before: Manifest = {
        "models": {"old@1": {"weights": "1.safetensors", "aliases": ["live", "best"]}},
        "reactors": {
            "make": {
                "type": "merge",
                "strategy": "linear",
                "members": [{"model": "old@1"}],
                "produces": {"model": "new", "version": "1", "aliases": ["live"]},
                "protected": True,
                "deletion": "orphan",
                "ignore": ["tags"],
            }
        },
    }
    work.apply(before)
    model = {
        "weights": {"source": "1.safetensors", "codec": "zstd"},
        "protected": True,
        "ignore": ["tags"],
        "renamed_from": "old@1",
    }
    tuned = {"weights": {"source": "2.bin", "format": "safetensors", "delta_from": "kept@1"}}
    before["models"] = {"kept@1": model, "tuned@1": tuned}
    before["reactors"]["make"]["members"] = [{"model": "kept@1", "weight": 1}]
    work.apply({**before, "training": {"t": {"model": "new:live", "deletion": "orphan"}}})
    found = check_round_trip(work)
    data = yaml.safe_load(found.files["arc_halo.yaml"])
    assert data["models"]["kept@1"]["protected"] is True
    assert data["models"]["tuned@1"]["weights"]["format"] == "safetensors"
    assert data["reactors"]["make"]["produces"] == {
        "model": "new",
        "version": "1",
        "aliases": ["live"],
    }
    assert data["reactors"]["make"]["deletion"] == data["training"]["t"]["deletion"] == "orphan"


def test_a_machine_without_the_weights_plans_to_nothing_too(work: Any) -> None:
    work.apply({"models": {"a@1": {"weights": "1.safetensors"}, "b@1": {"type": "other"}}})
    for path in (*work.directory.glob("*.safetensors"), work.directory / ".arc-halo/digests.json"):
        path.unlink()
    check_round_trip(work)
    assert [note for note in work.plan().notes if "1.safetensors is not here" in note]


def test_a_model_of_another_project_goes_by_its_alias(work: Any, open_workshop: Any) -> None:
    other = open_workshop("other")
    other.apply({"project": "other", "models": {"far@2": {"aliases": ["live"]}, "rest@1": {}}})
    asking = {"type": "ensemble", "strategy": "voting", "members": [{"model": "far:live"}]}
    work.apply({"reactors": {"ask": asking}, "training": {"tune": {"model": "far:live"}}})
    text = check_round_trip(work).files["arc_halo.yaml"]
    assert "model: 'far:live'" in text.replace('"', "'")
    other.apply({"project": "other", "models": {"far@2": {}, "rest@1": {}}})
    (note, *_) = exported(work).notes
    assert note == "reactor/ask: model/far@2 is declared nowhere here, and has no alias to go by"


def test_what_only_json_can_hold_goes_into_a_file_of_its_own(work: Any) -> None:
    odd = {"bell": "\x07", "large": 2**70, "deep": [{"k" * 3000: 10**22}], "negative": -1e-9}
    (work.directory / "config.json").write_text(json.dumps(odd))
    work.apply({"models": {"a@1": {"architecture": "config.json"}}})
    found = check_round_trip(work)
    assert list(found.files) == ["arc_halo.yaml", "architectures/a@1.json"]
    with pytest.raises(InvalidInputError, match="needs 2 files") as caught:
        _ = found.text
    assert "--out DIR" in str(caught.value.hint)


def test_too_much_for_one_file_is_included_from_several(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "PART_SIZE", 20)
    models = {f"m{n}@1": {"tags": {str(n): str(i) for i in range(n)}} for n in range(6)}
    work.apply({"models": models, "strategies": {"even": {"uses": "linear"}}})
    assert len(check_round_trip(work).files) > 3


def test_the_project_file_keeps_what_no_database_knows(work: Any) -> None:
    shutil.copy(ROOT / "benchmarks/outputs.py", work.directory)
    manifest = {
        "plugins": ["outputs.py"],
        "settings": {"memory": "${MEMORY:-64MiB}", "prune": True},
        "strategies": {"own": {"uses": "mean_outputs", "params": {"weighted": False}}},
        "models": {"a@1": {"type": "other"}},
    }
    work.apply(manifest)
    text = check_round_trip(work).files["arc_halo.yaml"]
    assert "plugins: [outputs.py]" in text
    assert "${MEMORY:-64MiB}" in text
    work.write({"models": {}})
    found = exported(work)
    assert found.notes == (
        "strategy/own: no loaded plugin provides the strategy 'mean_outputs': list it in `plugins`",
    )
    assert "  # no loaded plugin provides" in found.files["arc_halo.yaml"]


def test_what_nobody_manages_is_declared_adopted_and_then_plans_to_nothing(work: Any) -> None:
    manifest: Manifest = {
        "models": {"a@1": {"weights": "1.safetensors", "aliases": ["live"], "deletion": "orphan"}},
        "strategies": {"even": {"uses": "linear", "deletion": "orphan"}},
        "reactors": {
            "make": {
                "type": "merge",
                "strategy": "even",
                "members": [{"model": "a@1", "weight": 0.5}],
                "produces": {"model": "b", "version": "1"},
                "deletion": "orphan",
            }
        },
        "training": {"t": {"model": "b@1", "deletion": "orphan", "logging": {"flush_seconds": 2}}},
        "inference": {"kv_cache": {"budget": "2GiB", "ttl": "7d", "deletion": "orphan"}},
    }
    work.apply(manifest)
    work.destroy()
    work.write({})
    found = exported(work, with_unmanaged=True)
    addresses = [str(key) for key in found.unmanaged]
    assert sorted(addresses) == [
        "inference/kv_cache", "model/a@1", "model/b@1", "reactor/make", "strategy/even",
        "training/t",
    ]  # fmt: skip
    (work.directory / "arc_halo.yaml").write_text(found.files["arc_halo.yaml"])
    assert {str(c.key) for c in work.plan().conflicts} == set(addresses)
    for address in addresses:
        assert f"arc-halo adopt {address}\n" in found.files["arc_halo.yaml"]
        with work.project() as project:
            project.adopt(address)
    assert check_round_trip(work).unmanaged == ()


def test_weights_outside_of_the_project_say_how_to_allow_them(work: Any) -> None:
    place = work.directory.parent / "else where"
    place.mkdir()
    shutil.copy(work.directory / "1.safetensors", place / "w.safetensors")
    with connect(work.url, project=work.directory) as halo:
        halo.models.import_weights("far@1", place / "w.safetensors")
    work.write({})
    found = exported(work, with_unmanaged=True)
    allowed = f"`--allow-path '{place}'`"
    (note,) = found.notes
    assert note.startswith("model/far@1: its weights are outside of the project")
    assert note.endswith(allowed)
    (work.directory / "arc_halo.yaml").write_text(found.files["arc_halo.yaml"])
    with pytest.raises(ManifestError) as caught:
        work.plan()
    (problem,) = caught.value.problems
    assert problem.code == "AH012"
    assert (problem.hint or "").endswith(allowed)


def test_a_model_that_came_from_no_file_says_how_to_get_one(work: Any) -> None:
    work.apply(
        {
            "models": {"a@1": {"weights": "1.safetensors"}},
            "reactors": {
                "make": {
                    "type": "merge",
                    "strategy": "linear",
                    "members": [{"model": "a@1"}],
                    "produces": {"model": "b", "version": "1"},
                }
            },
        }
    )
    work.sql("DELETE FROM managed_resources WHERE kind = 'reactor'")
    found = exported(work)
    assert found.notes == ("model/b@1: its weights came from no file: arc-halo export b@1, first",)
    assert "weights/b@1.safetensors" in found.files["arc_halo.yaml"]


def test_what_no_manifest_can_say_is_refused_by_its_address(work: Any) -> None:
    work.apply({"models": {"a@1": {"description": "plain"}}})
    work.sql('UPDATE managed_resources SET spec = spec || \'{"description": "\\u0007"}\'')
    with pytest.raises(InvalidInputError, match="model/a@1: description holds what no manifest"):
        exported(work)


def test_unknown_projects_are_told_from_those_that_are_there(work: Any) -> None:
    with pytest.raises(InvalidInputError, match="nothing says which project"):
        exported(work)
    work.write({})
    with pytest.raises(NotFoundError, match="no project 'work'"):
        exported(work)
    work.apply({"models": {"a@1": {}}})
    with pytest.raises(NotFoundError, match="no project 'other'") as caught:
        exported(work, name="other")
    assert caught.value.hint == "there are work: choose one by `--name`"


def test_the_command_writes_once_and_needs_no_manifest(
    work: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    work.apply({"models": {"a@1": {}}})
    monkeypatch.chdir(tmp_path)
    database = ["--database-url", work.url]
    assert run(["export-manifest", "--name", "work", *database]) == 0
    text = capsys.readouterr().out
    first, second, *_ = text.splitlines()
    assert "arc-halo schema > manifest.schema.json" in first
    assert second == "# yaml-language-server: $schema=manifest.schema.json"
    assert run(["export-manifest", "--name", "work", "--out", "new/dir", *database]) == 0
    assert (tmp_path / "new/dir/arc_halo.yaml").read_text() == text
    capsys.readouterr()
    assert run(["export-manifest", "--name", "work", "--out", "new/dir", *database]) == 5
    assert "AH014" in capsys.readouterr().err
    again = ["export-manifest", "--name", "work", "--out", "a.yaml", "--force", *database]
    assert run([*again, "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["a.yaml"]
    assert run([*again, "--project", str(work.directory), "--output", "markdown"]) == 0
    assert "1 resource of work" in capsys.readouterr().out


def test_the_corpus_and_the_demo_plan_to_nothing_too(work: Any) -> None:
    from corpus import write_corpus

    corpus, demo = (replace(work, directory=work.directory / name) for name in ("corpus", "demo"))
    write_corpus(corpus.directory, models=40, reactors=8, files=2)
    corpus.apply()
    check_round_trip(corpus)
    corpus.destroy()
    for name in ("reactors", "plugins", "examples"):
        ignored = shutil.ignore_patterns(".arc-halo")
        shutil.copytree(ROOT / name, demo.directory / name, ignore=ignored)
    shutil.copy(ROOT / "arc_halo.yaml", demo.directory)
    demo.apply()
    check_round_trip(demo)
