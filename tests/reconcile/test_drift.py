"""Whatever somebody changes in a managed row is noticed by the next plan and set right by apply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
import pytest

from arc_halo import Project

POET = "WHERE model_name = 'poet'"
LAYER = "WHERE layer_index = 1 AND model_id = (SELECT id FROM models WHERE model_name = 'poet')"
TENSOR = (
    "WHERE tensor_name = 'model.layers.1.self_attn.q_proj.weight' "
    "AND model_id = (SELECT id FROM models WHERE model_name = 'poet')"
)

TAMPERINGS = {
    "models.model_type": f"UPDATE models SET model_type = 'ssm' {POET}",
    "models.architecture_config": f"UPDATE models SET architecture_config = '{{}}' {POET}",
    "models.architecture_family": f"UPDATE models SET architecture_family = 'bert' {POET}",
    "models.description": f"UPDATE models SET description = NULL {POET}",
    "models.tags": f"UPDATE models SET tags = '{{}}' {POET}",
    "models.weight_set_id": f"""
        UPDATE models SET weight_set_id =
            (SELECT weight_set_id FROM models WHERE model_name = 'critics') {POET}""",
    "models without weights": f"""
        UPDATE models SET weight_set_id = NULL, status = 'registered' {POET}""",
    "models.weights_metadata": f"UPDATE models SET weights_metadata = '{{}}' {POET}",
    "models.parameter_count": f"UPDATE models SET parameter_count = 1 {POET}",
    "models.status": f"UPDATE models SET status = 'failed' {POET}",
    "a model deleted": """
        DELETE FROM models WHERE model_name = 'coder' AND version = '2.0.0'""",
    "layers.layer_type": f"UPDATE transformer_layers SET layer_type = 'ssm' {LAYER}",
    "layers.layer_index": f"UPDATE transformer_layers SET layer_index = 7 {LAYER}",
    "layers.hidden_size": f"UPDATE transformer_layers SET hidden_size = 9 {LAYER}",
    "layers.intermediate_size": f"UPDATE transformer_layers SET intermediate_size = 9 {LAYER}",
    "layers.num_heads": f"UPDATE transformer_layers SET num_heads = 9 {LAYER}",
    "layers.num_kv_heads": f"UPDATE transformer_layers SET num_kv_heads = 9 {LAYER}",
    "layers.head_dim": f"UPDATE transformer_layers SET head_dim = 9 {LAYER}",
    "layers.activation": f"UPDATE transformer_layers SET activation = 'relu' {LAYER}",
    "layers.normalization": f"UPDATE transformer_layers SET normalization = NULL {LAYER}",
    "layers.position_encoding": f"UPDATE transformer_layers SET position_encoding = 'x' {LAYER}",
    "a layer deleted": f"DELETE FROM transformer_layers {LAYER}",
    "a layer added": """
        INSERT INTO transformer_layers (model_id, layer_index, layer_type)
        SELECT id, 9, 'decoder' FROM models WHERE model_name = 'poet'""",
    "heads.head_dim": "UPDATE attention_heads SET head_dim = 9 WHERE head_index = 3",
    "heads.kv_head_index": "UPDATE attention_heads SET kv_head_index = 0 WHERE head_index = 3",
    "heads.head_index": "UPDATE attention_heads SET head_index = 9 WHERE head_index = 3",
    "a head deleted": "DELETE FROM attention_heads WHERE head_index = 0",
    "weights.tensor_id": f"""
        UPDATE model_weights SET tensor_id =
            (SELECT max(id) FROM tensor_metadata) {TENSOR}""",
    "weights.layer_id": f"UPDATE model_weights SET layer_id = NULL {TENSOR}",
    "weights.weight_type": f"UPDATE model_weights SET weight_type = 'norm' {TENSOR}",
    "weights.tensor_name": f"UPDATE model_weights SET tensor_name = 'x' {TENSOR}",
    "a weight deleted": f"DELETE FROM model_weights {TENSOR}",
    "a weight added": """
        INSERT INTO model_weights (model_id, tensor_name, tensor_id)
        SELECT models.id, 'extra', (SELECT max(id) FROM tensor_metadata)
        FROM models WHERE model_name = 'poet'""",
    "aliases.alias": "UPDATE model_aliases SET alias = 'stolen' WHERE alias = 'production'",
    "aliases.model_id": """
        UPDATE model_aliases SET model_id =
            (SELECT id FROM models WHERE model_name = 'coder' AND version = '2.0.0')
        WHERE alias = 'stable'""",
    "an alias deleted": "DELETE FROM model_aliases WHERE alias = 'production'",
    "an alias added": """
        INSERT INTO model_aliases (model_name, alias, model_id)
        SELECT model_name, 'extra', id FROM models WHERE model_name = 'poet'""",
    "strategies.uses": "UPDATE fusion_strategies SET uses = 'slerp'",
    "strategies.params": "UPDATE fusion_strategies SET params = '{}'",
    "strategies.description": "UPDATE fusion_strategies SET description = 'x'",
    "strategies.tags": "UPDATE fusion_strategies SET tags = '{}'",
    "reactors.reactor_type": """
        UPDATE cognitive_fusion_reactors SET reactor_type = 'cascade', produces_model_id = NULL""",
    "reactors.strategy_name": "UPDATE cognitive_fusion_reactors SET strategy_name = 'slerp'",
    "reactors.strategy_uses": "UPDATE cognitive_fusion_reactors SET strategy_uses = 'slerp'",
    "reactors.params": "UPDATE cognitive_fusion_reactors SET params = '{}'",
    "reactors.base_model_id": "UPDATE cognitive_fusion_reactors SET base_model_id = NULL",
    "reactors.produces_model_id": "UPDATE cognitive_fusion_reactors SET produces_model_id = NULL",
    "reactors.config": "UPDATE cognitive_fusion_reactors SET config = '{}'",
    "reactors.description": "UPDATE cognitive_fusion_reactors SET description = NULL",
    "reactors.tags": "UPDATE cognitive_fusion_reactors SET tags = '{}'",
    "a reactor deleted": "DELETE FROM cognitive_fusion_reactors",
    "members.model_id": """
        UPDATE reactor_models SET model_id =
            (SELECT id FROM models WHERE model_name = 'base') WHERE ordinal = 2""",
    "members.ordinal": "UPDATE reactor_models SET ordinal = 9 WHERE ordinal = 0",
    "members.role": "UPDATE reactor_models SET role = 'validator' WHERE ordinal = 1",
    "members.weight": "UPDATE reactor_models SET weight = 0.75 WHERE ordinal = 1",
    "members.priority": "UPDATE reactor_models SET priority = NULL WHERE ordinal = 1",
    "a member deleted": "DELETE FROM reactor_models WHERE ordinal = 2",
    "interactions.from": """
        UPDATE model_interaction_graph SET from_model_id =
            (SELECT model_id FROM reactor_models WHERE ordinal = 2)""",
    "interactions.to": """
        UPDATE model_interaction_graph SET to_model_id =
            (SELECT model_id FROM reactor_models WHERE ordinal = 2)""",
    "interactions.kind": "UPDATE model_interaction_graph SET interaction_kind = 'corrects'",
    "interactions.weight": "UPDATE model_interaction_graph SET weight = 0.25",
    "an interaction deleted": "DELETE FROM model_interaction_graph",
    "trainings.model_id": """
        UPDATE training_definitions SET model_id =
            (SELECT id FROM models WHERE model_name = 'base')""",
    "trainings.total_epochs": "UPDATE training_definitions SET total_epochs = NULL",
    "trainings.total_steps": "UPDATE training_definitions SET total_steps = 7",
    "trainings.config": "UPDATE training_definitions SET config = '{}'",
    "trainings.dataset": "UPDATE training_definitions SET dataset = '{}'",
    "trainings.group_name": "UPDATE training_definitions SET group_name = 'x'",
    "trainings.notes": "UPDATE training_definitions SET notes = NULL",
    "trainings.best_metric": "UPDATE training_definitions SET best_metric = 'eval/accuracy'",
    "trainings.best_mode": "UPDATE training_definitions SET best_mode = 'max'",
    "trainings.keep_last": "UPDATE training_definitions SET keep_last = 9",
    "trainings without retention": """
        UPDATE training_definitions SET keep_last = NULL, keep_best = NULL, keep_every = NULL""",
    "trainings.keep_every": "UPDATE training_definitions SET keep_every = 9",
    "trainings.logging": "UPDATE training_definitions SET logging = '{}'",
    "trainings.gradient_checkpointing": """
        UPDATE training_definitions SET gradient_checkpointing = NULL""",
    "trainings.description": "UPDATE training_definitions SET description = 'x'",
    "trainings.tags": "UPDATE training_definitions SET tags = '{}'",
    "a training deleted": "DELETE FROM training_definitions",
    "caches.budget_bytes": "UPDATE cache_policies SET budget_bytes = 9",
    "caches.ttl": "UPDATE cache_policies SET ttl = interval '1 month'",
    "caches.block_tokens": "UPDATE cache_policies SET block_tokens = 9 WHERE name = 'kv_cache'",
    "caches.codec": "UPDATE cache_policies SET codec = 'raw' WHERE name = 'kv_cache'",
    "caches.quota_bytes": "UPDATE cache_policies SET quota_bytes = NULL",
    "caches.quotas": "UPDATE cache_policies SET quotas = '{}'",
    "caches.description": "UPDATE cache_policies SET description = 'x'",
    "caches.tags": "UPDATE cache_policies SET tags = '{}'",
    "a cache deleted": "DELETE FROM cache_policies WHERE name = 'kv_cache'",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A project that was applied once, and how its rows looked right after."""

    project: Project
    conn: psycopg.Connection[Any]
    dump: Callable[[psycopg.Connection[Any]], Any]
    rows: Any


@pytest.fixture(scope="module")
def applied(
    tmp_path_factory: pytest.TempPathFactory,
    create_database: Any,
    template: str,
    make_workshop: Any,
    dump: Any,
) -> Iterator[Applied]:
    workshop = make_workshop(tmp_path_factory.mktemp("drift"), create_database(template))
    workshop.apply(_manifest(workshop))
    with (
        workshop.project() as project,
        psycopg.connect(workshop.url, autocommit=True, prepare_threshold=None) as conn,
    ):
        yield Applied(project=project, conn=conn, dump=dump, rows=dump(conn))


@pytest.mark.parametrize("tampering", TAMPERINGS.values(), ids=TAMPERINGS.keys())
def test_a_change_from_outside_is_noticed_and_repaired(applied: Applied, tampering: str) -> None:
    project, conn = applied.project, applied.conn
    try:
        conn.execute(tampering)
        assert applied.dump(conn) != applied.rows
        plan = project.plan()
        assert plan.has_changes, "the drift was not noticed"
        assert all(change.is_drift and change.reason for change in plan.changes)
    finally:
        conn.execute("UPDATE managed_resources SET live_digest = 'look again'")
        project.apply(project.plan())
    assert applied.dump(conn) == applied.rows
    assert not project.plan().has_changes


def _manifest(workshop: Any) -> dict[str, Any]:
    def weights(name: str) -> str:
        random = np.random.default_rng(len(name))
        names = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
        names += ["model.layers.1.self_attn.q_proj.weight"]
        tensors = {n: random.random((4, 3), np.float32) for n in names}
        return workshop.weights(f"{name}.safetensors", tensors, {"made by": name})

    from_file = {
        name: {
            "version": "1.0.0",
            "architecture": {"model_type": "llama", **SIZES},
            "weights": weights(name),
            "description": f"the {name}",
            "tags": {"team": name},
            "aliases": ["production"] if name == "poet" else [],
        }
        for name in ("base", "poet", "coder", "critics")
    }
    return {
        "models": {
            **{f"{name}@1.0.0": {**m, "version": "1.0.0"} for name, m in from_file.items()},
            "coder@2.0.0": {"type": "other"},
            "coder@3.0.0": {"type": "other", "aliases": ["stable"]},
        },
        "strategies": {
            "even": {
                "uses": "linear",
                "params": {"normalize": True},
                "description": "plain",
                "tags": {"a": 1},
            }
        },
        "reactors": {
            "story": {
                "type": "merge",
                "strategy": "even",
                "base": "base",
                "members": [
                    {"model": "poet", "role": "primary", "weight": 0.5},
                    {"model": "coder@1.0.0", "weight": 0.25, "priority": 3},
                    {"model": "critics", "weight": 0.25},
                ],
                "interactions": [
                    {"from": "coder@1.0.0", "to": "poet", "kind": "validates", "weight": 0.5}
                ],
                "produces": {"model": "story", "version": "1.0.0"},
                "config": {"quorum": 2},
                "description": "a merge",
                "tags": {"b": True},
            }
        },
        "inference": {
            "kv_cache": {
                "budget": "10GiB",
                "quota": "1GiB",
                "quotas": {"acme": "2GiB"},
                "tags": {"d": 1},
            },
            "activation_cache": {"ttl": "7d"},
        },
        "training": {
            "tuning": {
                "model": "story",
                "total_epochs": 3,
                "config": {"lr": 3e-4},
                "dataset": {"name": "tales"},
                "notes": "a first attempt",
                "metrics": {"best": "eval/loss"},
                "retention": {"keep_last": 3, "keep_best": 1},
                "gradient_checkpointing": {"layers": [1], "sequence_length": 64},
                "tags": {"c": 1.5},
            }
        },
    }


SIZES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "hidden_act": "silu",
}


def test_a_list_that_is_ignored_is_no_drift(workshop):
    reactor = {
        "type": "ensemble",
        "strategy": "voting",
        "members": [{"model": "a"}, {"model": "b"}],
        "ignore": ["members"],
    }
    models = {f"{name}@1": {"type": "other"} for name in "ab"}
    workshop.apply({"models": models, "reactors": {"r": reactor}})
    workshop.sql("UPDATE reactor_models SET weight = 0.25")
    assert not workshop.drift().is_found
    assert not workshop.plan().has_changes
