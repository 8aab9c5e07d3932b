"""Merges of different vocabularies: rows aligned, against an oracle that goes token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psycopg
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from arc_halo import connect
from arc_halo.cli.main import run
from tests.fusion.tokenizers import (
    EMBEDDING,
    OUTPUT,
    VOCABULARIES,
    Arrays,
    Vocabulary,
    aligned,
    document,
    union,
    write_models,
)

ALL = union(VOCABULARIES["base"], VOCABULARIES["poet"], VOCABULARIES["coder"])


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(directory: Path, **fields: Any) -> None:
    reactor = {
        "type": "merge",
        "strategy": "linear",
        "base": "base",
        "members": [{"model": "poet", "weight": 3}, {"model": "coder", "weight": 1}],
        "tokenizer": "union",
        "produces": {"model": "blend", "version": "1"},
        **fields,
    }
    models = {
        f"{name}@1": {
            "architecture": f"{name}/config.json",
            "weights": f"{name}/model.safetensors",
            "tokenizer": f"{name}/tokenizer.json",
        }
        for name in VOCABULARIES
    }
    manifest = {
        "version": 1,
        "project": "shop",
        "models": models,
        "reactors": {"blend": {k: v for k, v in reactor.items() if v is not None}},
    }
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))


def fuse(*names: str) -> Arrays:
    files = [part for n in names or VOCABULARIES for part in ("--from-files", f"{n}={n}")]
    assert run(["fuse", "run", ".", *files, "--to-dir", "out", "--force"]) == 0
    return load_file("out/model.safetensors")


def average(tensor: str, models: dict[str, Arrays], result: Vocabulary, rows: int) -> Any:
    poet, coder = (aligned(n, tensor, models, result, rows) for n in ("poet", "coder"))
    return (poet.astype(np.float64) * 3 + coder.astype(np.float64)) / 4


CHOICES: dict[str, tuple[Any, Vocabulary, int]] = {
    "union": ("union", ALL, len(ALL)),
    "base": ("base", VOCABULARIES["base"], 9),
    "member": ("poet", VOCABULARIES["poet"], 10),
    "base by its name": ("base@1", VOCABULARIES["base"], 9),
    "padded": ({"of": "union", "pad_to_multiple_of": 16}, ALL, 16),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_rows_are_those_of_the_tokens(directory: Path, choice: str) -> None:
    said, result, rows = CHOICES[choice]
    models = write_models(directory)
    write(directory, tokenizer=said)
    found = fuse()
    for tensor in (EMBEDDING, OUTPUT):
        assert found[tensor].shape == (rows, 24)
        expected = average(tensor, models, result, rows).astype(np.float32)
        np.testing.assert_allclose(found[tensor], expected, rtol=0, atol=1e-6)
    config = json.loads((directory / "out" / "config.json").read_text())
    assert config["vocab_size"] == rows
    assert vocabulary(directory / "out" / "tokenizer.json") == result


def vocabulary(path: Path) -> Vocabulary:
    data = json.loads(path.read_bytes())
    added = {each["content"]: each["id"] for each in data["added_tokens"]}
    return {**data["model"]["vocab"], **added}


def apply(database: str) -> tuple[Arrays, dict[str, Any]]:
    with connect(database, project=Path()) as halo:
        halo.project.apply(halo.project.plan())
        return halo.tensors.load("blend"), halo.models.get("blend").architecture


RECIPES: dict[str, dict[str, Any]] = {
    "a mean": {},
    "a base beside": {"strategy": "ties", "params": {"density": 0.5}},
    "no base": {"base": None},
    "a member's, padded": {"tokenizer": {"of": "coder", "pad_to_multiple_of": 32}},
    "measured": {"strategy": "slerp", "params": {"t": 0.3}},
    "float64": {"compute": "F64", "out_dtype": "F32"},
    "slices": {
        "strategy": "passthrough",
        "slices": [{"layers": {"poet": [0, 1]}}, {"layers": {"coder": [0, 1]}}],
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_files_and_database_come_to_the_same_bits(
    directory: Path, database: str, name: str
) -> None:
    write_models(directory, ml_dtypes.bfloat16)
    write(directory, **RECIPES[name])
    expected, architecture = apply(database)
    found = fuse(*(["poet", "coder"] if name == "no base" else VOCABULARIES))
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        assert values.tobytes() == found[tensor].tobytes(), tensor
    assert json.loads((directory / "out" / "config.json").read_text()) == architecture
    assert architecture["vocab_size"] == len(found[EMBEDDING])
    assert run(["export", "blend", "-o", "exported", "--database-url", database]) == 0
    exported = (directory / "exported" / "tokenizer.json").read_bytes()
    assert exported == (directory / "out" / "tokenizer.json").read_bytes()


def plan(database: str) -> Any:
    with connect(database, project=Path()) as halo:
        return halo.project.plan()


def test_the_same_again_is_no_change(directory: Path, database: str) -> None:
    write_models(directory)
    write(directory)
    apply(database)
    assert not plan(database).has_changes


def test_a_tokenizer_that_is_absent_counts_as_recorded(directory: Path, database: str) -> None:
    write_models(directory)
    write(directory)
    before, _ = apply(database)
    for name in VOCABULARIES:
        for file in (directory / name).iterdir():
            if file.name != "config.json":
                file.unlink()
    assert not plan(database).has_changes
    write(directory, tokenizer="base")
    after, architecture = apply(database)
    assert architecture["vocab_size"] == 9
    assert after[EMBEDDING].shape == (9, 24)
    assert after["model.norm.weight"].tobytes() == before["model.norm.weight"].tobytes()


def test_one_that_was_never_read_has_to_be_there(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(directory)
    write(directory)
    (directory / "poet" / "tokenizer.json").unlink()
    assert run(["plan", "--database-url", database]) == 4
    assert "the tokenizer of model/poet@1, poet/tokenizer.json, is not there" in (
        capsys.readouterr().err
    )


def test_processes_of_their_own_come_to_the_same(directory: Path, database: str) -> None:
    write_models(directory)
    write(directory)
    assert run(["apply", "--database-url", database, "--executor", "processes"]) == 0
    found = fuse()
    with connect(database) as halo:
        for tensor, values in halo.tensors.load("blend").items():
            assert values.tobytes() == found[tensor].tobytes()


def test_a_merge_of_a_merge_has_the_vocabulary_of_that(directory: Path, database: str) -> None:
    write_models(directory)
    write(directory)
    manifest = yaml.safe_load((directory / "arc_halo.yaml").read_text())
    manifest["reactors"] |= {
        "again": {
            "type": "merge",
            "strategy": "linear",
            "members": [{"model": "blend"}, {"model": "coder"}],
            "tokenizer": "blend",
            "produces": {"model": "again", "version": "1"},
        },
        "alike": {
            "type": "merge",
            "strategy": "linear",
            "members": [{"model": "again"}, {"model": "blend"}],
            "produces": {"model": "alike", "version": "1"},
        },
    }
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))
    apply(database)
    with connect(database) as halo:
        blend = halo.tensors.load("blend")[EMBEDDING]
        again = halo.tensors.load("again")[EMBEDDING]
        assert len(again) == len(ALL)
        only_coder = ALL["z"]
        np.testing.assert_array_equal(again[only_coder], blend[only_coder])
        for name in ("blend", "again", "alike"):
            assert halo.models.get(name).architecture["vocab_size"] == len(ALL)
        digests = {halo.models.get(n).tokenizer_digest for n in ("blend", "again", "alike")}
    assert len(digests) == 1


def test_a_tokenizer_changed_aligns_anew_and_touches_nothing_else(
    directory: Path, database: str
) -> None:
    write_models(directory)
    write(directory)
    apply(database)
    changed = {**VOCABULARIES["coder"], "z": 4, "x": 3}
    (directory / "coder" / "tokenizer.json").write_bytes(document(changed))
    apply(database)
    with psycopg.connect(database) as conn:
        (count,) = conn.execute(
            "SELECT count(*) FROM fused_tensors WHERE tensor_digest IS NOT NULL"
        ).fetchone() or (0,)
    assert count == 4 + 2


def test_what_no_model_has_is_collected(directory: Path, database: str) -> None:
    write_models(directory)
    write(directory)
    apply(database)
    changed = {**VOCABULARIES["coder"], "w": 8}
    (directory / "coder" / "tokenizer.json").write_bytes(document(changed))
    apply(database)
    assert stored(database) == 6
    assert run(["tensors", "gc", "--database-url", database, "--dry-run"]) == 0
    assert stored(database) == 6
    assert run(["tensors", "gc", "--database-url", database]) == 0
    assert stored(database) == 4


def stored(database: str) -> int:
    with psycopg.connect(database) as conn:
        (count,) = conn.execute("SELECT count(*) FROM tokenizers").fetchone() or (0,)
    return int(count)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no base": ({"base": None, "tokenizer": "base"}, "the reactor has no base"),
    "no member": ({"base": None, "tokenizer": "base@1"}, "base@1 is neither a member of blend"),
    "unknown": ({"tokenizer": "poem"}, "did you mean 'poet'?"),
    "padding": ({"tokenizer": {"of": "union", "pad_to_multiple_of": 0}}, "AH007"),
    "nothing said": ({"tokenizer": None}, "align them by `tokenizer: union`"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_are_told(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    fields, told = REFUSED[mistake]
    write_models(directory)
    write(directory, **fields)
    assert run(["apply", "--database-url", database, "--yes"]) in (4, 5)
    assert told in capsys.readouterr().err


def test_a_model_without_a_tokenizer_cannot_be_aligned(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(directory)
    write(directory)
    manifest = yaml.safe_load((directory / "arc_halo.yaml").read_text())
    del manifest["models"]["coder@1"]["tokenizer"]
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))
    assert run(["apply", "--database-url", database, "--yes"]) == 5
    message = capsys.readouterr().err
    assert "model/coder@1 has no tokenizer" in message
    assert "declare `tokenizer:` for coder@1" in message


def test_fewer_rows_than_tokens_are_refused(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(directory)
    write(directory)
    many = {**VOCABULARIES["poet"], "q": 40}
    (directory / "poet" / "tokenizer.json").write_bytes(document(many))
    files = [part for n in VOCABULARIES for part in ("--from-files", f"{n}={n}")]
    assert run(["fuse", "run", ".", *files, "--to-dir", "out"]) == 4
    message = capsys.readouterr().err
    assert f"{EMBEDDING}: 10 rows in poet, whose tokenizer has 41 tokens" in message
    assert not (directory / "out").exists()


def test_a_token_more_at_the_end_contradicts_nothing(directory: Path, database: str) -> None:
    models = write_models(directory)
    for name in ("poet", "coder"):
        save_file(models["base"], directory / name / "model.safetensors")
    more = {**VOCABULARIES["base"], "<more>": 10}
    for name, own in (("poet", more), ("coder", VOCABULARIES["base"])):
        (directory / name / "tokenizer.json").write_bytes(document(own, {"<s>", "<more>"}))
    write(directory, tokenizer=None)
    found, _ = apply(database)
    np.testing.assert_array_equal(found[EMBEDDING], models["base"][EMBEDDING])


def test_lineage_names_the_base_that_gave_rows(directory: Path, database: str) -> None:
    write_models(directory)
    write(directory)
    apply(database)
    query = """
        SELECT fused.recipe ->> 'name', count(*), count(input.weight)
        FROM fused_tensors AS fused JOIN fused_tensor_inputs AS input USING (tensor_key)
        GROUP BY fused.tensor_key ORDER BY 1
    """
    with psycopg.connect(database) as conn:
        counted = {name: (count, weighted) for name, count, weighted in conn.execute(query)}
    assert counted[EMBEDDING] == (3, 2)
    assert counted["model.norm.weight"] == (2, 2)


def test_any_of_it_can_be_computed_again_and_says_where_it_comes_from(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(directory)
    write(directory)
    apply(database)
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE models SET tokenizer_digest = NULL")
        conn.execute("DELETE FROM tokenizers")
    assert run(["fuse", "verify", "blend", "--database-url", database]) == 0
    capsys.readouterr()
    arguments = ["lineage", "blend", "--tensor", EMBEDDING, "--output", "json"]
    assert run([*arguments, "--database-url", database]) == 0
    (made,) = json.loads(capsys.readouterr().out)["made_by"]
    assert [(each["model"], each["weight"]) for each in made["inputs"]] == [
        ("coder@1", 1), ("poet@1", 3), ("base@1", None),
    ]  # fmt: skip


def test_aligned_rows_are_inspected_as_they_are_fused(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(directory)
    write(directory)
    blend, _ = apply(database)
    capsys.readouterr()
    inspect = ["fuse", "inspect", "--reactor", "blend", "--output", "json"]
    assert run([*inspect, "--database-url", database]) == 0
    found = json.loads(capsys.readouterr().out)
    files = [
        part for name in ("base", "poet", "coder") for part in ("--from-files", f"{name}={name}")
    ]
    assert run([*inspect, *files]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert found["read_bytes"] > 0
    each = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert each[EMBEDDING]["elements"] == blend[EMBEDDING].size


def test_rows_without_a_tokenizer_are_not_inspected(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(directory)
    write(directory)
    apply(database)
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE models SET tokenizer_digest = NULL WHERE model_name = 'coder'")
    inspect = ["fuse", "inspect", "--reactor", "blend", "--database-url", database]
    assert run(inspect) == 4
    assert "model/coder@1 has no tokenizer" in capsys.readouterr().err
