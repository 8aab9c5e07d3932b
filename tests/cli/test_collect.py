"""`arc-halo tensors gc`: what it tells, and how much of the history it keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from arc_halo import connect
from arc_halo.cli.main import run

MANIFEST = "version: 1\nproject: demo\nsettings: {retain_revisions: %d}\n"


@pytest.fixture
def history(tmp_path, database, monkeypatch):
    """A model that has had four sets of weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    with connect(project=tmp_path) as halo:
        made = halo.models.create_model(
            model_name="m", model_type="other", architecture_config={}, version="1"
        )
        for value in range(4):
            halo.tensors.write(made, {"w": np.full(5, value, np.float32)})
    return tmp_path


def collect(capsys, *arguments):
    capsys.readouterr()
    assert run(["tensors", "gc", "--grace", "0", *arguments, "--output", "json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("retain", "gone"), [(1, 3), (3, 1), (4, 0)])
def test_as_much_of_the_history_is_kept_as_the_project_says(history, capsys, retain, gone):
    (history / "arc_halo.yaml").write_text(MANIFEST % retain)
    told = collect(capsys, "--dry-run")
    done = collect(capsys)
    assert told == {**done, "dry_run": True}
    assert (done["history_entries"], done["weight_sets"], done["chunks"]) == (gone, gone, gone)
    with connect(project=history) as halo:
        assert halo.tensors.read("m", "w").tolist() == [3] * 5


def test_without_a_manifest_twenty_are_kept(history, capsys):
    assert collect(capsys)["history_entries"] == 0


@pytest.mark.parametrize("grace", ["soon", "-1h", "99999999d", "1.5h"])
def test_what_is_no_time_is_refused(history, capsys, grace):
    assert run(["tensors", "gc", "--grace", grace]) == 64
    assert "no period of time" in capsys.readouterr().err


def test_how_much_is_too_young_is_told(history, capsys):
    (history / "arc_halo.yaml").write_text(MANIFEST % 20)
    with connect(project=history) as halo:
        halo.models.delete("m")
    stored = collect(capsys, "--dry-run")["freed_bytes"]
    assert stored > 0
    for form in (["--dry-run"], []):
        told = collect(capsys, "--grace", "24h", *form)
        assert (told["freed_bytes"], told["too_young_bytes"]) == (0, stored)
        assert run(["tensors", "gc", "--grace", "24h", *form]) == 0
        said = capsys.readouterr().out
        assert "Nothing to collect.\n" in said
        assert "younger than the grace of 24h" in said
    assert collect(capsys)["too_young_bytes"] == 0
    assert run(["tensors", "gc"]) == 0
    assert capsys.readouterr().out == "Nothing to collect.\n"
