"""`arc-halo activations …`: what it lists, tells in figures and deletes, its exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest

import arc_halo
from arc_halo.cli.main import run
from tests.inference.stored_activations import key_of, put

VALUES = np.array([[[3.0, -4.0], [0.0, 0.0]]], np.float32)
CAPTURE = key_of([7, 8]).capture_id


@pytest.fixture
def activations(database, tmp_path, monkeypatch, capsys):
    """Runs `arc-halo activations …` on one capture of three entries; its exit code and what it
    said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    with arc_halo.connect(database, project=tmp_path) as halo:
        store = halo.project.weights
        put(store, [7, 8], VALUES, name="layers.0.mlp")
        put(store, [7, 8], VALUES, name="layers.1.mlp")
        put(store, [7, 8], VALUES[:, [1]], name="norm", selection={"positions": [1]})

    def call(*arguments):
        capsys.readouterr()
        code = run(["activations", *map(str, arguments), "--quiet"])
        said = capsys.readouterr()
        return code, said.out if code == 0 else said.err

    return call


def found_json(activations, *arguments):
    code, text = activations(*arguments, "--output", "json")
    assert code == 0, text
    return json.loads(text)


def test_captures_are_listed(activations):
    code, text = activations("ls")
    assert code == 0
    assert text.splitlines()[0].split() == [
        "id", "model", "captured", "used", "layers", "size", "hits",
    ]  # fmt: skip
    assert text.splitlines()[1].startswith(f"{str(CAPTURE)[:8]}  {b'rrrrrr'.hex()}  ")
    assert text.rstrip().endswith("3       40 B  0")
    (found,) = found_json(activations, "ls", "--model", b"rrrrrr".hex())["captures"]
    assert (found["id"], found["layer_count"]) == (str(CAPTURE), 3)
    assert found["weights_root"] == f"sha256:{(b'r' * 32).hex()}"
    assert found_json(activations, "ls", "--model", "story") == {"captures": []}
    assert activations("ls", "--output", "markdown")[1].startswith("| id | model |")


def test_the_layers_of_a_capture_are_shown_in_figures(activations):
    code, text = activations("show", CAPTURE.hex[:8])
    assert code == 0
    lines = text.splitlines()
    assert lines[0] == f"{CAPTURE}, of {b'rrrrrr'.hex()}, 40 B, 0 hits"
    assert [line.split() for line in lines[3:]] == [
        ["layers.0.mlp", "all", "F32", "1x2x2", "-0.25", "2.48747", "-4", "3", "5"],
        ["layers.1.mlp", "all", "F32", "1x2x2", "-0.25", "2.48747", "-4", "3", "5"],
        ["norm", "1", "F32", "1x1x2", "0", "0", "0", "0", "0"],
    ]
    found = found_json(activations, "show", CAPTURE, "--layer", "norm")
    assert found["layers"] == [
        {"name": "norm", "positions": [1], "dtype": "F32", "shape": [1, 1, 2], "size_bytes": 8,
         "hit_count": 0, "mean": 0.0, "std": 0.0, "min": 0.0, "max": 0.0, "norm": 0.0},
    ]  # fmt: skip
    markdown = activations("show", CAPTURE, "--layer", "layers.*", "--output", "markdown")[1]
    assert markdown.count("| layers.") == 2


def test_what_is_not_there_is_told(activations):
    assert activations("show", "nobody")[0] == 1
    code, text = activations("show", CAPTURE, "--layer", "layers.9")
    assert (code, "layers.0.mlp, layers.1.mlp, norm" in text) == (1, True)


def test_captures_are_deleted_all_or_none_once_it_is_meant(activations):
    assert activations("rm", CAPTURE, "nobody")[0] == 1
    assert activations("rm", CAPTURE, "--dry-run")[1] == f"would delete {CAPTURE}: 3 layers, 40 B\n"
    assert len(found_json(activations, "ls")["captures"]) == 1
    assert found_json(activations, "rm", CAPTURE.hex[:6], CAPTURE) == {
        "captures": [str(CAPTURE)], "size_bytes": 40, "is_done": True,
    }  # fmt: skip
    assert activations("ls")[1].startswith("No activations")
