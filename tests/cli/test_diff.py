"""`arc-halo diff`: what differs between two models, and by how much."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from arc_halo import connect
from arc_halo.cli.main import run
from arc_halo.fusion.comparing import compare
from arc_halo.weights.spans import StoredTensor


@pytest.fixture
def models(tmp_path, database, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    numbers = np.random.default_rng(0)
    first = {
        "same": numbers.normal(size=100_000).astype(np.float32),
        "part": numbers.normal(size=200_000).astype(np.float32),
        "zero": np.zeros(3, np.float32),
        "gone": np.ones(4, np.float32),
        "shape": np.ones((2, 3), np.float32),
        "ids": np.arange(5),
    }
    second = {
        "same": first["same"],
        "part": first["part"].copy(),
        "zero": np.array([0, 3, 4], np.float32),
        "new": np.ones(9, np.float32),
        "shape": np.ones((3, 2), np.float32),
        "ids": np.arange(5) + 1,
    }
    second["part"][:10] += 1
    for name, tensors in (("a@1", first), ("b@1", second)):
        save_file(tensors, tmp_path / "m.safetensors")
        assert run(["import", "m.safetensors", "--as", name]) == 0
    return first, second


def told(capsys, *arguments):
    capsys.readouterr()
    code = run(["diff", *arguments, "--output", "json"])
    return code, json.loads(capsys.readouterr().out)


def test_every_difference_is_told_with_its_size(models, capsys):
    code, facts = told(capsys, "a", "b")
    found = {each["name"]: each for each in facts["differences"]}
    assert code == 0
    assert {name: each["change"] for name, each in found.items()} == {
        "part": "changed",
        "zero": "changed",
        "ids": "changed",
        "gone": "removed",
        "new": "added",
        "shape": "reshaped",
    }
    assert (facts["equal_tensors"], facts["equal_bytes"]) == (1, 400_000)
    one, two = (each["part"].astype(np.float64) for each in models)
    far = found["part"]["distance"]
    assert far["norm"] == pytest.approx(np.linalg.norm(two - one))
    assert far["relative"] == pytest.approx(np.linalg.norm(two - one) / np.linalg.norm(one))
    assert far["cosine"] == pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    assert far["largest"] == pytest.approx(np.abs(two - one).max())
    assert far["changed_share"] == 10 / 200_000
    assert found["part"]["shared_bytes"] == 800_000 - 262_144
    assert found["zero"]["distance"]["relative"] is None
    assert found["zero"]["distance"]["cosine"] is None
    assert found["ids"]["distance"] is None


def test_equal_models_are_equal_and_read_nothing(models, capsys, database, monkeypatch):
    assert told(capsys, "a", "a", "--exit-code")[0] == 0
    assert told(capsys, "a", "b", "--exit-code")[0] == 2
    read = []
    monkeypatch.setattr(StoredTensor, "__init__", lambda self, store, row, name: read.append(name))
    with connect(database) as halo:
        set_id = halo.models.get("a").weight_set_id
        assert compare(replace(halo.project.weights), set_id, set_id).is_equal
    assert read == []


def test_it_is_a_table_for_people(models, capsys):
    capsys.readouterr()
    assert run(["diff", "a", "b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "tensor", "change", "size", "shared", "norm", "relative", "cosine", "elements"
    ]  # fmt: skip
    assert "F32 [2, 3] -> F32 [3, 2]" in "\n".join(lines)
    assert lines[-1].startswith("1 added, 3 changed, 1 removed, 1 reshaped; equal: 1 tensor")
    assert run(["diff", "a", "nobody"]) == 1


def test_what_is_beyond_all_numbers_is_left_open(tmp_path, database, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    for name, value in (("a@1", 1.7e308), ("b@1", -1.7e308)):
        save_file({"w": np.full(3, value)}, tmp_path / "m.safetensors")
        assert run(["import", "m.safetensors", "--as", name]) == 0
    code, facts = told(capsys, "a", "b")
    assert code == 0
    (found,) = facts["differences"]
    assert found["distance"] == {
        "norm": None, "relative": None, "largest": None, "cosine": None, "changed_share": 1.0
    }  # fmt: skip
