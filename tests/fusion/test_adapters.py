"""LoRA adapters added to members before a merge, against products worked out in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from arc_halo import connect
from arc_halo.cli.main import run
from arc_halo.errors import IncompatibleModelsError
from arc_halo.fusion.adapters import fit
from arc_halo.fusion.blocks import Span, spans
from arc_halo.fusion.compatibility import Described, Table
from arc_halo.fusion.inputs import Input
from arc_halo.fusion.recipes import AdapterInput
from arc_halo.fusion.updates import UpdatedInput
from tests.fusion.test_blocks import Memory

Q, EMBED, NORM = "layers.0.q.weight", "embed.weight", "norm.weight"
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def base_tensors() -> dict[str, np.ndarray[Any, Any]]:
    numbers = np.random.default_rng(0)
    shapes = {Q: (300, 250), EMBED: (40, 250), NORM: (250,)}
    return {name: numbers.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def adapter_tensors() -> dict[str, np.ndarray[Any, Any]]:
    numbers = np.random.default_rng(1)
    prefix = "base_model.model."
    found = {
        f"{prefix}layers.0.q.lora_A.weight": numbers.normal(size=(4, 250)),
        f"{prefix}layers.0.q.lora_B.weight": numbers.normal(size=(300, 4)),
        f"{prefix}embed.lora_embedding_A": numbers.normal(size=(4, 40)),
        f"{prefix}embed.lora_embedding_B": numbers.normal(size=(250, 4)),
        f"{prefix}norm.weight": numbers.normal(size=250),
    }
    return {name: values.astype(np.float32) for name, values in found.items()}


def expected(scale: float) -> dict[str, np.ndarray[Any, Any]]:
    """alpha / r is 2."""
    base, wide = base_tensors(), {n: v.astype(float) for n, v in adapter_tensors().items()}
    prefix = "base_model.model."
    q = wide[f"{prefix}layers.0.q.lora_B.weight"] @ wide[f"{prefix}layers.0.q.lora_A.weight"]
    embed = wide[f"{prefix}embed.lora_embedding_B"] @ wide[f"{prefix}embed.lora_embedding_A"]
    return {
        Q: base[Q] + scale * 2 * q,
        EMBED: base[EMBED] + scale * 2 * embed.T,
        NORM: wide[f"{prefix}norm.weight"],
    }


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, found in (("base", base_tensors()), ("lora", adapter_tensors())):
        (tmp_path / name).mkdir()
        save_file(found, tmp_path / name / "model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(CONFIG))
    manifest = {
        "version": 1,
        "project": "shop",
        "models": {
            "base@1": {"type": "other", "weights": "base"},
            "lora@1": {
                "type": "other",
                "architecture": "lora/adapter_config.json",
                "weights": "lora/model.safetensors",
            },
        },
        "reactors": {
            "blend": {
                "type": "merge",
                "strategy": "passthrough",
                "members": [{"model": "base", "adapters": [{"model": "lora", "scale": 0.5}]}],
                "produces": {"model": "blend", "version": "1"},
            }
        },
    }
    (tmp_path / "arc_halo.yaml").write_text(yaml.safe_dump(manifest))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_member_is_fused_with_its_adapter(directory: Path, database: str) -> None:
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        found = halo.tensors.load("blend")
    for name, values in expected(0.5).items():
        assert np.allclose(found[name], values, rtol=1e-6, atol=1e-6), name
    arguments = ["--from-files", "base=base", "--from-files", "lora=lora", "--to-dir", "out"]
    assert run(["fuse", "run", ".", *arguments]) == 0
    by_files = load_file(directory / "out" / "model.safetensors")
    assert {n: v.tobytes() for n, v in found.items()} == {
        n: v.tobytes() for n, v in by_files.items()
    }
    assert run(["fuse", "verify", "blend", "--database-url", database]) == 0


def test_an_adapter_is_in_the_lineage_and_cannot_be_deleted(
    directory: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        with halo.project.connection() as conn:
            rows = conn.execute(
                """SELECT input_model, input_tensor FROM v_tensor_lineage
                   WHERE tensor_name = %s ORDER BY ordinal""",
                [Q],
            ).fetchall()
    assert [model for model, _ in rows] == ["base@1", "lora@1", "lora@1"]
    with connect(database, project=directory) as halo:
        assert not halo.project.plan().has_changes
    text = (directory / "arc_halo.yaml").read_text()
    (directory / "arc_halo.yaml").write_text(text.replace("scale: 0.5", "scale: 0.25"))
    with connect(database, project=directory) as halo:
        plan = halo.project.plan()
        assert {str(change.key) for change in plan.changes} == {"model/blend@1", "reactor/blend"}
        halo.project.apply(plan)
        found = halo.tensors.load("blend")
    assert np.allclose(found[Q], expected(0.25)[Q], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("window", [2**16, 2**20])
def test_bits_do_not_depend_on_the_parts(window: int) -> None:
    base, lora = base_tensors()[Q], adapter_tensors()
    left = lora["base_model.model.layers.0.q.lora_B.weight"].astype(float)
    right = lora["base_model.model.layers.0.q.lora_A.weight"].astype(float)
    whole = UpdatedInput(Input("m", Q, Memory(base, 4096), 2**22), [(left, right)], 250)
    expected = whole.block(Span(0, base.shape, base.size)).tobytes()
    for part in ("elements", "rows"):
        each = UpdatedInput(Input("m", Q, Memory(base, 4096), window), [(left, right)], 250)
        found = [each.block(span).tobytes() for span in spans(base.shape, part)]
        assert b"".join(found) == expected
    odd = UpdatedInput(Input("m", Q, Memory(base, 4096), window), [(left, right)], 250)
    assert odd.block(Span(123, (777,), 777)).tobytes() == expected[4 * 123 : 4 * 900]


def tables() -> tuple[AdapterInput, Table, Table]:
    adapter = {name: Described("F32", values.shape) for name, values in adapter_tensors().items()}
    member = {name: Described("F32", values.shape) for name, values in base_tensors().items()}
    told = AdapterInput(model="lora@1", root=None, config=CONFIG)
    return told, Table("lora@1", adapter), Table("base@1", member)


def test_the_scale_is_alpha_over_rank_or_over_its_root() -> None:
    adapter, table, member = tables()
    assert fit(adapter, table, member).updates[Q].scale == 2.0
    stable = replace(adapter, config={**CONFIG, "use_rslora": True})
    assert fit(stable, table, member).updates[Q].scale == 4.0
    own = replace(adapter, config={**CONFIG, "alpha_pattern": {"0.q": 2}})
    assert fit(own, table, member).updates[Q].scale == 0.5
    assert fit(own, table, member).updates[EMBED].scale == 2.0


MISFITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, {}, "DoRA"),
    "kind": ({"peft_type": "IA3"}, {}, "is of the type IA3"),
    "no alpha": ({"lora_alpha": None}, {}, "no lora_alpha"),
    "no target": ({}, {"base_model.model.k.lora_A.weight": (4, 9)}, "has no k.weight"),
    "half": ({}, {"base_model.model.layers.0.q.lora_B.weight": None}, "its lora_B is missing"),
    "shape": ({}, {"base_model.model.layers.0.q.lora_B.weight": (299, 4)}, "is not [300, 250]"),
    "saved": ({}, {"base_model.model.norm.weight": (3,)}, "shape [3], not [250]"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_an_adapter_that_does_not_fit_is_refused(misfit: str) -> None:
    config, changed, told = MISFITS[misfit]
    adapter, table, member = tables()
    shapes = {name: tensor.shape for name, tensor in table.tensors.items()} | changed
    found = {name: Described("F32", shape) for name, shape in shapes.items() if shape is not None}
    wrong = replace(adapter, config={**CONFIG, **config})
    with pytest.raises(IncompatibleModelsError) as caught:
        fit(wrong, Table("lora@1", found), member)
    assert told in caught.value.message
