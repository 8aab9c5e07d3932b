"""Recipes of a project, applied and applied again: what is computed anew, and to which bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from arc_halo import connect
from arc_halo.cli.main import run
from arc_halo.errors import ManifestError

NAMES = ("base", "poet", "coder")
LAYERS = 3
CONFIG = {"model_type": "llama", "num_hidden_layers": LAYERS, "torch_dtype": "float32"}


def tensors(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    numbers = np.random.default_rng(seed)
    found = {"model.embed_tokens.weight": numbers.normal(size=(40, 16))}
    for layer in range(LAYERS):
        found[f"model.layers.{layer}.mlp.up.weight"] = numbers.normal(size=(600, 300))
        found[f"model.layers.{layer}.attn.q.weight"] = numbers.normal(size=(16, 16))
    found["model.norm.weight"] = numbers.normal(size=16)
    return {name: values.astype(np.float32) for name, values in found.items()}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        save_file(tensors(seed), tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(directory: Path, **fields: Any) -> None:
    reactor = {
        "type": "merge",
        "strategy": "ties",
        "params": {"density": 0.5},
        "base": "base",
        "members": [{"model": "poet", "weight": 0.6}, {"model": "coder", "weight": 0.3}],
        "produces": {"model": "blend", "version": "1"},
        **fields,
    }
    reactor = {key: value for key, value in reactor.items() if value is not None}
    models = {
        f"{name}@1": {"architecture": f"{name}/config.json", "weights": name} for name in NAMES
    }
    manifest = {
        "version": 1,
        "project": "shop",
        "models": models,
        "reactors": {"blend": reactor},
    }
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))


def apply(directory: Path, database: str) -> tuple[list[str], dict[str, np.ndarray[Any, Any]]]:
    """The tensors that were computed now, and all of the result."""
    with connect(database, project=directory) as halo:
        before = computed(database)
        halo.project.apply(halo.project.plan())
        return sorted(computed(database) - before), halo.tensors.load("blend")


def computed(database: str) -> set[str]:
    query = """SELECT encode(tensor_key, 'hex'), recipe ->> 'name' FROM fused_tensors
               WHERE tensor_digest IS NOT NULL"""
    with psycopg.connect(database) as conn:
        try:
            return {f"{name} {key}" for key, name in conn.execute(query)}
        except psycopg.errors.UndefinedTable:
            return set()


def names(found: list[str]) -> list[str]:
    return [each.partition(" ")[0] for each in found]


def test_a_recipe_changed_in_one_layer_computes_that_layer_again(
    directory: Path, database: str
) -> None:
    write(directory)
    first, before = apply(directory, database)
    assert names(first) == sorted(tensors(0))
    write(directory, tensors=[{"match": "*.layers.1.*", "params": {"density": 0.2}}])
    again, after = apply(directory, database)
    assert names(again) == ["model.layers.1.attn.q.weight", "model.layers.1.mlp.up.weight"]
    changed = {name for name in after if after[name].tobytes() != before[name].tobytes()}
    assert changed == set(names(again))
    write(directory)
    assert apply(directory, database)[0] == []
    write(directory, tensors=[{"match": "*.layers.1.*", "weights": {"poet": 0.6}}])
    assert apply(directory, database)[0] == []


def test_an_input_changed_in_one_tensor_computes_that_tensor_again(
    directory: Path, database: str
) -> None:
    write(directory)
    apply(directory, database)
    changed = tensors(1)
    changed["model.norm.weight"] += 1
    save_file(changed, directory / "poet" / "model.safetensors")
    again, _ = apply(directory, database)
    assert names(again) == ["model.norm.weight"]


RECIPES: dict[str, dict[str, Any]] = {
    "rules": {
        "tensors": [
            {"match": "*.mlp.*", "params": {"density": [0.1, 0.9]}},
            {"match": ["*norm*", "*embed*"], "weights": {"poet": 0, "coder": 1}},
        ]
    },
    "gradients": {
        "strategy": "slerp",
        "params": None,
        "base": None,
        "tensors": [{"match": "*", "params": {"t": [0, 0.5, 1]}}],
    },
    "slices": {
        "strategy": "passthrough",
        "params": None,
        "base": None,
        "slices": [{"layers": {"poet": [0, 3]}}, {"layers": {"coder": [1, 3]}}],
    },
    "slices of two": {
        "slices": [
            {"layers": {"poet": [0, 2], "coder": [1, 3]}, "params": {"density": 0.3}},
            {"layers": {"coder": [2, 3]}, "base": 0, "weights": {"coder": 1}},
        ]
    },
    "dtypes": {"strategy": "linear", "params": None, "compute": "F64", "out_dtype": "BF16"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_files_and_database_come_to_the_same_bits(
    directory: Path, database: str, name: str
) -> None:
    write(directory, **RECIPES[name])
    _, expected = apply(directory, database)
    files = [part for each in NAMES for part in ("--from-files", f"{each}={each}")]
    files = files[2:] if RECIPES[name].get("base", "base") is None else files
    assert run(["fuse", "run", ".", *files, "--to-dir", "out"]) == 0
    found = load_file(directory / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        assert values.tobytes() == found[tensor].tobytes(), tensor
    with connect(database, project=directory) as halo:
        architecture = halo.models.get("blend").architecture
    assert json.loads((directory / "out" / "config.json").read_text()) == architecture
    layers = {each.split(".")[2] for each in found if ".layers." in each}
    assert architecture["num_hidden_layers"] == len(layers)


def test_the_dtype_that_is_written_is_what_the_architecture_says(
    directory: Path, database: str
) -> None:
    write(directory, **RECIPES["dtypes"])
    _, found = apply(directory, database)
    assert {values.dtype.name for values in found.values()} == {"bfloat16"}
    with connect(database, project=directory) as halo:
        assert halo.models.get("blend").architecture["torch_dtype"] == "bfloat16"


def test_gradients_are_what_they_say(directory: Path, database: str) -> None:
    rule = {"match": "*", "weights": {"poet": [1, 0], "coder": [0, 1]}}
    write(directory, strategy="linear", params=None, tensors=[rule])
    _, found = apply(directory, database)
    poet, coder = tensors(1), tensors(2)
    for name, share in (("0.mlp.up", 0.0), ("1.attn.q", 0.5), ("2.mlp.up", 1.0)):
        tensor = f"model.layers.{name}.weight"
        expected = (1 - share) * poet[tensor].astype(float) + share * coder[tensor]
        assert np.array_equal(found[tensor], expected.astype(np.float32)), name
    assert np.array_equal(found["model.norm.weight"], poet["model.norm.weight"])


MISTAKES = {
    "tensors.0.params.density": (
        {"tensors": [{"match": "*", "params": {"density": [0.5, 2]}}]}, "AH007|AH006",
    ),
    "unknown param": ({"tensors": [{"match": "*", "params": {"densty": 1}}]}, "AH003"),
    "no member": ({"tensors": [{"match": "*", "weights": {"base": 1}}]}, "AH020"),
    "empty slice": ({"slices": [{"layers": {"poet": [2, 2]}}]}, "AH007"),
    "unequal slice": ({"slices": [{"layers": {"poet": [0, 2], "coder": [0, 1]}}]}, "AH023"),
    "dtype": ({"out_dtype": "I8"}, "AH006"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_have_a_place_and_a_code(directory: Path, mistake: str) -> None:
    fields, codes = MISTAKES[mistake]
    write(directory, **fields)
    with connect(project=directory) as halo, pytest.raises(ManifestError) as caught:
        halo.project.desired_without_database()
    (problem,) = caught.value.problems
    assert problem.code in codes.split("|")
    assert problem.line > 1
