"""`arc-halo fuse inspect`: conflicts before a merge, from the database or from files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import psycopg
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from arc_halo.cli.main import run

ROOT = Path(__file__).parents[2]
MODELS = ("base", "poet", "coder")
PROJECT = """
version: 1
project: shop
models:
  base@1: {type: other, weights: base.safetensors}
  poet@1: {type: other, weights: poet.safetensors}
  coder@1: {type: other, weights: coder.safetensors}
reactors:
  blend:
    type: merge
    strategy: linear
    base: base
    members: [{model: poet}, {model: coder}]
    produces: {model: blend, version: "1"}
  alone:
    type: merge
    strategy: task_arithmetic
    base: base
    members: [{model: poet}]
    produces: {model: alone, version: "1"}
"""
CHUNK_BYTES = 262144
LARGE = 40 * CHUNK_BYTES // 4


@pytest.fixture
def directory(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of three models, none of which is applied; `u` is unchanged by the poet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    numbers = np.random.default_rng(0)
    base = {
        "embed.weight": numbers.normal(size=(40, 8)),
        "layers.0.attn.q.weight": numbers.normal(size=LARGE),
        "layers.1.attn.q.weight": numbers.normal(size=(8, 8)),
        "layers.1.mlp.up.weight": numbers.normal(size=(8, 8)),
    }
    for name in MODELS:
        save_file(
            {
                tensor: np.float32(array + (numbers.normal(0, 0.1, array.shape) * is_tuned))
                for tensor, array in base.items()
                for is_tuned in [name == "coder" or (name == "poet" and "mlp" not in tensor)]
            }
            | {"ids": np.arange(4)},
            tmp_path / f"{name}.safetensors",
        )
    (tmp_path / "arc_halo.yaml").write_text(PROJECT)
    return tmp_path


def import_all() -> None:
    for name in MODELS:
        assert run(["import", f"{name}.safetensors", "--as", f"{name}@1"]) == 0


def inspect(*arguments: str) -> int:
    return run(["fuse", "inspect", *arguments])


def from_files(*names: str) -> list[str]:
    return [part for n in names for part in ("--from-files", f"{n}={n}.safetensors")]


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    capsys.readouterr()
    assert inspect(*arguments, "--output", "json") == 0
    return json.loads(capsys.readouterr().out)


def figures(facts: dict) -> list[dict]:
    """What does not depend on how models are called."""
    return [{k: v for k, v in each.items() if k != "members"} for each in facts["tensors"]]


def damage(database: str, chunks: str) -> None:
    """Flip a bit in those chunks of the large tensors."""
    with psycopg.connect(database) as conn:
        conn.execute(
            f"""
            UPDATE chunk_bodies
            SET body = set_byte(body, octet_length(body) / 2,
                                get_byte(body, octet_length(body) / 2) # 1)
            WHERE digest IN (SELECT data.chunk_digest FROM tensor_data AS data
                             JOIN tensor_metadata AS tensor ON tensor.id = data.tensor_id
                             WHERE tensor.size_bytes > 1000000 AND data.chunk_index {chunks})
            """
        )


def test_database_and_files_and_a_reactor_tell_the_same(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_all()
    by_name = told(capsys, "poet", "coder", "--base", "base")
    by_reactor = told(capsys, "--reactor", "blend")
    by_files = told(capsys, "poet", "coder", "--base", "base", *from_files(*MODELS))
    reactor_files = told(capsys, "--reactor", "blend", *from_files(*MODELS))
    assert figures(by_name) == figures(by_reactor) == figures(by_files) == figures(reactor_files)
    assert (by_reactor["reactor"], by_reactor["base"]) == ("blend", "base@1")
    assert by_reactor["members"] == ["poet@1", "coder@1"]
    assert [each["name"] for each in by_name["tensors"]] == [
        "embed.weight", "layers.0.attn.q.weight", "layers.1.attn.q.weight",
        "layers.1.mlp.up.weight",
    ]  # fmt: skip


def test_only_chunks_with_elements_of_the_sample_are_read(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import_all()
    facts = told(capsys, "poet", "coder", "--base", "base")
    small = 4 * (3 * (320 + 64) + 2 * 64)  # the poet's `mlp` is the base's: one of them is read
    assert facts["read_bytes"] == 3 * 4 * CHUNK_BYTES + small
    assert facts["size_bytes"] == 3 * 40 * CHUNK_BYTES + small
    damage(database, "NOT IN (5, 15, 25, 35)")
    assert told(capsys, "poet", "coder", "--base", "base") == facts
    damage(database, "= 15")
    assert inspect("poet", "coder", "--base", "base") == 1
    assert "AH060" in capsys.readouterr().err


def test_nothing_is_merged_and_nothing_is_stored(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import_all()
    count = "SELECT (SELECT count(*) FROM weight_sets), (SELECT count(*) FROM weight_builds)"
    with psycopg.connect(database) as conn:
        before = conn.execute(count).fetchone()
    assert inspect("--reactor", "blend") == 0
    with psycopg.connect(database) as conn:
        assert conn.execute(count).fetchone() == before


def test_a_reactor_whose_models_are_not_applied_says_what_to_do(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect("--reactor", "blend") == 1
    error = capsys.readouterr().err
    assert "error[AH064]: reactor/blend merges poet@1, which is not applied yet" in error
    assert "`--from-files poet@1=poet.safetensors`" in error


MISTAKES = {
    "one model": (["poet"], 64, "it takes two models"),
    "nothing": ([], 64, "it takes two models"),
    "models and a reactor": (["poet", "coder", "--reactor", "blend"], 64, "leave out either"),
    "a reactor of one": (["--reactor", "alone"], 4, "has one member"),
    "no such reactor": (["--reactor", "blond"], 4, "did you mean 'blend'?"),
    "no such model": (["poet", "nobody"], 1, "there is no model"),
    "a file too few": (["poet", "coder", *from_files("poet")], 64, "no file is given for coder"),
    "a sample of nothing": (["poet", "coder", "--sample", "0"], 64, "range"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(
    directory: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    arguments, code, message = MISTAKES[mistake]
    assert inspect(*arguments) == code
    assert message in capsys.readouterr().err


def test_it_is_a_heatmap_for_people(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("poet", "coder", "--base", "base", *from_files(*MODELS))
    assert inspect(*arguments) == 0
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    lines = [line.split() for line in plain.splitlines()]
    assert ["mean", "cosine", "all", "q", "up"] in lines
    assert [line[0] for line in lines if line][2:7] == ["embed", "0", "1", "all", "●○"]
    assert "unrelated changes have 0 and 50%" in plain
    assert re.search(r"Norms of the changes, over that of base: poet \d+\.\d%, coder \d", plain)


def test_cells_are_coloured_where_there_are_colours(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("poet", "coder", "--base", "base", *from_files(*MODELS))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert inspect(*arguments) == 0
    assert "\x1b[" in capsys.readouterr().out
    assert inspect(*arguments, "--no-color") == 0
    assert "\x1b" not in capsys.readouterr().out


def test_it_is_tables_for_a_pull_request(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect("poet", "coder", *from_files("poet", "coder"), "--output", "markdown") == 0
    out = capsys.readouterr().out
    assert "| mean cosine | all | attn.q | mlp.up |" in out
    assert "| tensor | sign conflict | cosine | changes | elements |" in out
    assert "name their `--base`" in out


def test_the_picture_is_overwritten_by_force_only(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("poet", "coder", *from_files("poet", "coder"), "--svg", "conflicts.svg")
    assert inspect(*arguments) == 0
    assert (directory / "conflicts.svg").read_text().startswith("<svg ")
    (directory / "conflicts.svg").write_text("mine")
    assert inspect(*arguments) == 5
    assert (directory / "conflicts.svg").read_text() == "mine"
    assert inspect(*arguments, "--force") == 0
    assert (directory / "conflicts.svg").read_text() != "mine"


def test_the_picture_of_the_docs_is_that_of_the_demos_weights(tmp_path: Path) -> None:
    files = [
        part
        for name in ("base", "scripture", "python")
        for part in ("--from-files", f"{name}={ROOT / 'examples' / 'weights' / name}")
    ]
    out = tmp_path / "conflicts.svg"
    assert inspect("--project", str(ROOT), "--reactor", "story", *files, "--svg", str(out)) == 0
    assert out.read_text() == (ROOT / "docs" / "images" / "conflicts.svg").read_text()


def test_what_an_adapter_adds_is_its_members_change(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = np.random.default_rng(1)
    left, right = (np.float32(numbers.normal(size=shape)) for shape in ((8, 2), (2, 8)))
    name = "base_model.model.layers.1.mlp.up.lora_{}.weight".format
    save_file({name("A"): right, name("B"): left}, directory / "lora.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    manifest = yaml.safe_load(PROJECT)
    manifest["models"]["lora@1"] = {
        "type": "other",
        "architecture": "adapter_config.json",
        "weights": "lora.safetensors",
    }
    adapted = {"model": "base", "adapters": [{"model": "lora", "scale": 0.5}]}
    manifest["reactors"]["blend"]["members"] = [adapted, {"model": "coder"}]
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))

    by_files = told(capsys, "--reactor", "blend", *from_files("base", "coder", "lora"))
    assert run(["apply"]) == 0
    facts = told(capsys, "--reactor", "blend")
    assert facts == by_files | {"read_bytes": facts["read_bytes"]}

    base, coder = (load_file(f"{model}.safetensors") for model in ("base", "coder"))
    found = {each["name"]: each for each in facts["tensors"]}
    assert found["embed.weight"]["relative_norms"][0] == 0
    up = "layers.1.mlp.up.weight"
    first = left.astype(float) @ right  # lora_alpha / r * scale is 1
    second = coder[up].astype(float) - base[up]
    cosine = np.sum(first * second) / np.linalg.norm(first) / np.linalg.norm(second)
    assert found[up]["cosines"] == [pytest.approx(cosine)]
    assert found[up]["sign_conflicts"] == [np.mean(first * second < 0)]
    assert found[up]["relative_norms"][0] == pytest.approx(
        np.linalg.norm(first) / np.linalg.norm(base[up])
    )
