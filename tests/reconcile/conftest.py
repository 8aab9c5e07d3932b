"""A project in a directory of its own, on a database of its own."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import yaml
from jsonschema import Draft202012Validator

from arc_halo import Project
from arc_halo.reconcile.applying import Report
from arc_halo.reconcile.changes import Plan
from arc_halo.reconcile.drift import Drift, drift_json
from arc_halo.reconcile.limits import UNLIMITED, Limits
from arc_halo.reconcile.plan_document import plan_json, report_json
from arc_halo.reconcile.saved import published_schema

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "hidden_act": "silu",
}


# Everything that apply writes into the typed tables, ids and times left out.
DUMP = {
    "models": """
        SELECT model_name, version, model_type, architecture_config, architecture_family,
               description, tags, encode(sets.root, 'hex'), weights_metadata,
               models.parameter_count, status
        FROM models LEFT JOIN weight_sets AS sets ON sets.id = weight_set_id ORDER BY 1, 2""",
    "layers": """
        SELECT model_name, layer_index, layer_type, hidden_size, intermediate_size, num_heads,
               num_kv_heads, head_dim, activation, normalization, position_encoding
        FROM transformer_layers JOIN models ON models.id = model_id ORDER BY 1, 2""",
    "heads": """
        SELECT model_name, layer_index, head_index, heads.head_dim, kv_head_index
        FROM attention_heads AS heads JOIN transformer_layers AS layers ON layers.id = layer_id
        JOIN models ON models.id = model_id ORDER BY 1, 2, 3""",
    "weights": """
        SELECT model_name, tensor_name, tensor_id, layer_index, weight_type
        FROM model_weights JOIN models ON models.id = model_id
        LEFT JOIN transformer_layers AS layers ON layers.id = layer_id ORDER BY 1, 2""",
    "aliases": """
        SELECT aliases.model_name, alias, version
        FROM model_aliases AS aliases JOIN models ON models.id = model_id ORDER BY 1, 2""",
    "strategies": """
        SELECT name, uses, params, description, tags FROM fusion_strategies ORDER BY 1""",
    "reactors": """
        SELECT reactor_name, reactor_type, strategy_name, strategy_uses, params, base.model_name,
               produced.model_name, config, reactor.description, reactor.tags
        FROM cognitive_fusion_reactors AS reactor
        LEFT JOIN models AS base ON base.id = base_model_id
        LEFT JOIN models AS produced ON produced.id = produces_model_id ORDER BY 1""",
    "members": """
        SELECT reactor_name, ordinal, model_name, role, weight, priority
        FROM reactor_models JOIN models ON models.id = model_id
        JOIN cognitive_fusion_reactors AS reactor ON reactor.id = reactor_id ORDER BY 1, 2""",
    "trainings": """
        SELECT name, model_name, version, total_epochs, total_steps, config, dataset, group_name,
               notes, best_metric, best_mode, keep_last, keep_best, keep_every, logging,
               gradient_checkpointing, training.description, training.tags
        FROM training_definitions AS training
        JOIN models ON models.id = model_id ORDER BY 1""",
    "caches": """
        SELECT name, budget_bytes, ttl, block_tokens, codec, quota_bytes, quotas, description, tags
        FROM cache_policies ORDER BY 1""",
    "interactions": """
        SELECT reactor_name, source.model_name, target.model_name, interaction_kind, weight
        FROM model_interaction_graph
        JOIN cognitive_fusion_reactors AS reactor ON reactor.id = reactor_id
        JOIN models AS source ON source.id = from_model_id
        JOIN models AS target ON target.id = to_model_id ORDER BY 1, 2, 3, 4""",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Writes manifests and weight files, plans and applies them, and looks at the database."""

    directory: Path
    url: str

    def write(self, manifest: Mapping[str, Any], file: str = "arc_halo.yaml") -> None:
        head = {"version": 1, "project": "work"} if file == "arc_halo.yaml" else {}
        text = yaml.safe_dump({**head, **manifest}, sort_keys=False)
        (self.directory / file).write_text(text)

    def weights(
        self,
        file: str,
        tensors: Mapping[str, np.ndarray],
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write a safetensors file by hand; returns its label."""
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        body = b""
        for name, array in tensors.items():
            raw = np.ascontiguousarray(array).tobytes()
            header[name] = {
                "dtype": DTYPES[array.dtype.name],
                "shape": list(array.shape),
                "data_offsets": [len(body), len(body) + len(raw)],
            }
            body += raw
        text = json.dumps(header).encode()
        (self.directory / file).write_bytes(struct.pack("<Q", len(text)) + text + body)
        return file

    def project(self) -> Project:
        return Project(self.directory, database_url=self.url, environ={})

    def plan(self, *, prune: bool | None = None, **selection: Sequence[str]) -> Plan:
        with self.project() as project:
            plan = project.plan(prune=prune, **selection)
        check_schema("plan", plan_json(plan))
        return plan

    def drift(self) -> Drift:
        with self.project() as project:
            found = project.drift()
        check_schema("drift", drift_json(found))
        return found

    def apply(
        self,
        manifest: Mapping[str, Any] | None = None,
        *,
        prune: bool | None = None,
        limits: Limits = UNLIMITED,
        **selection: Sequence[str],
    ) -> Report:
        if manifest is not None:
            self.write(manifest)
        with self.project() as project:
            plan = project.plan(prune=prune, **selection)
            report = project.apply(plan, limits=limits)
        check_schema("plan", plan_json(plan))
        check_schema("report", report_json(report))
        return report

    def destroy(self) -> Report:
        with self.project() as project:
            return project.apply(project.plan_destroy(), limits=UNLIMITED)

    def sql(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Run one statement as another client of the database would; its rows."""
        with psycopg.connect(self.url, autocommit=True, prepare_threshold=None) as conn:
            cursor = conn.execute(query, params)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *params: object) -> Any:
        ((value,),) = self.sql(query, *params)
        return value


def check_schema(name: str, document: dict[str, Any]) -> None:
    """Hold what the program prints to the schema that it publishes."""
    Draft202012Validator(published_schema(name)).validate(document)


OpenWorkshop = Callable[..., Workshop]


@pytest.fixture(scope="session")
def make_workshop() -> Callable[[Path, str], Workshop]:
    """A workshop in a given directory, for fixtures that outlive a test."""
    return lambda directory, url: Workshop(directory=directory, url=url)


@pytest.fixture
def open_workshop(tmp_path: Path, database: str) -> OpenWorkshop:
    """Opens further projects on the test's database."""

    def opened(name: str = "work") -> Workshop:
        directory = tmp_path / name
        directory.mkdir()
        return Workshop(directory=directory, url=database)

    return opened


@pytest.fixture(scope="session")
def dump() -> Callable[[psycopg.Connection[Any]], dict[str, list[tuple[Any, ...]]]]:
    """Reads everything that apply writes into the typed tables."""

    def dumped(conn: psycopg.Connection[Any]) -> dict[str, list[tuple[Any, ...]]]:
        return {name: conn.execute(query).fetchall() for name, query in DUMP.items()}

    return dumped


@pytest.fixture
def workshop(open_workshop: OpenWorkshop) -> Workshop:
    return open_workshop()


@pytest.fixture
def llama() -> dict[str, Any]:
    """An architecture with layers and heads."""
    return dict(LLAMA)
