"""The demo: what a newcomer's first command leaves in the database and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import llama
import pytest
from safetensors import safe_open

from arc_halo.api import connect
from arc_halo.cli.main import run
from arc_halo.project import Project

ROOT = Path(__file__).parents[2]
EVALUATION = ROOT / "examples" / "weights"
WINDOWS = 128


@pytest.fixture
def applied(demo, database):
    with Project(demo, database_url=database) as project:
        project.apply(project.plan())
        yield project


@pytest.fixture
def exported(applied, database, tmp_path):
    out = tmp_path / "out"
    assert run(["export", "story", "-o", str(out), "--database-url", database]) == 0
    return out


def test_the_merge_is_a_registered_model_with_weights_and_lineage(applied, database):
    with connect(database, project=applied.directory) as halo:
        story = halo.models.get("story:production")
    assert (story.name, story.version, story.status) == ("story", "1.0.0", "ready")
    assert (story.parameter_count, story.tensor_count) == (3033344, 39)
    with applied.connection() as conn:
        inputs = conn.execute(
            "SELECT model_name, weight FROM fusion_operation_inputs ORDER BY ordinal"
        ).fetchall()
        operation = conn.execute(
            "SELECT reactor_name, strategy_name, output_root FROM fusion_operations"
        ).fetchall()
    assert inputs == [("scripture", 0.5), ("python", 0.5)]
    assert operation == [("story", "linear", story.root)]


def test_layers_and_heads_follow_from_the_config(applied):
    with applied.connection() as conn:
        shape = conn.execute(
            """SELECT layer_count, head_count, num_kv_heads, hidden_size
               FROM v_model_architecture WHERE model_name = 'story'"""
        ).fetchone()
    assert shape == (4, 16, 2, 256)


def test_nothing_is_left_to_do_after_apply(applied):
    plan = applied.plan()
    assert not plan.has_changes
    assert plan.unchanged_count == 8


@pytest.mark.parametrize("model", ["base", "scripture", "python"])
def test_an_imported_model_comes_out_byte_for_byte(applied, database, tmp_path, model):
    assert run(["export", model, "-o", str(tmp_path), "--database-url", database]) == 0
    exported = (tmp_path / "model.safetensors").read_bytes()
    assert exported == (EVALUATION / model / "model.safetensors").read_bytes()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == json.loads((EVALUATION / model / "config.json").read_text())


def test_safetensors_loads_the_exported_merge(exported):
    with safe_open(exported / "model.safetensors", framework="numpy") as file:
        assert len(file.keys()) == 39
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("text", ["scripture", "python", "general"])
def test_the_merge_has_the_losses_of_the_table(exported, text):
    table = json.loads((EVALUATION / "losses.json").read_text())["losses"]
    expected = table["linear 0.5/0.5, rounded to bfloat16"][text]
    words = (EVALUATION / f"eval_{text}.txt").read_bytes()
    loss = llama.mean_nats(exported, words, WINDOWS)
    assert loss == pytest.approx(expected, abs=6e-5)


@pytest.mark.campaign
def test_transformers_loads_the_exported_merge(exported):
    """With torch and transformers installed: `pytest -m campaign tests/demo`."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(exported, dtype=torch.bfloat16).float()
    words = (EVALUATION / "eval_scripture.txt").read_bytes()
    tokens = torch.tensor(list(words)).reshape(WINDOWS, 256)
    with torch.no_grad():
        logits = torch.cat([model(part).logits for part in tokens.split(16)]).double()
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 256), tokens[:, 1:].reshape(-1)
    )
    assert losses.item() == pytest.approx(1.1706, abs=6e-5)
