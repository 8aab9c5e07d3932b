"""Documents become the blocks that declare them: what a manifest says comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arc_halo.manifest.declaring import SECTIONS, Recorded, blocks_of
from arc_halo.manifest.documents import Desired, Lifecycle
from arc_halo.manifest.writing import mapping_lines
from arc_halo.plugins import PluginManager
from arc_halo.types import JsonObject
from tests.manifest.test_resolve import desired

EVERYTHING = """
models:
  a@1:
    architecture: {model_type: llama, num_hidden_layers: 4, rope: {theta: 10000.0, by: [1, null]}}
    tokenizer: a.json
    runner: {uses: recorded, params: {predictions: answers.jsonl}}
    aliases: [live, best]
    tags: {team: a, n: 1, f: 1.5, yes: true}
    description: ""
  b@1: {type: gan, protected: true, deletion: orphan, ignore: [tags, weights]}
  b@2: {architecture: {num_hidden_layers: 4}}
  lora@1: {}
strategies:
  calm: {uses: ties, params: {density: 0.25}, description: Calm., ignore: [params]}
reactors:
  make:
    type: merge
    strategy: calm
    params: {scale: 0.5}
    base: a@1
    members:
      - {model: a@1, role: primary, weight: 0.25, adapters: [lora@1]}
      - {model: b@2, priority: 0, adapters: [{model: lora@1, scale: -2}]}
    tensors:
      - {match: "*.bias", params: {density: [0.5, 1]}, weights: {a@1: [0, 0.5, 1], b@2: 3}}
      - {match: [x, "y?"], params: {density: 0.125}}
    slices:
      - {layers: {b@2: [0, 2], a@1: [1, 3]}, base: 2, weights: {a@1: 1}}
      - {layers: {a@1: [0, 1]}, params: {density: 0.5}}
    compute: F64
    out_dtype: BF16
    tokenizer: {of: union, pad_to_multiple_of: 64}
    produces:
      model: made
      version: "2"
      aliases: [live]
      runner: {uses: recorded, params: {predictions: b}}
    config: {anything: [{deep: null}]}
  other: {type: merge, strategy: linear, members: [{model: a@1}], tokenizer: a@1,
          produces: {model: other, version: "1"}}
  ask:
    type: cascade
    strategy: voting
    params: {ties: primary}
    members: [{model: a@1, cost: 0.5}, {model: b@2, role: specialist, domains: [law, art]}]
    interactions:
      - {from: a@1, to: b@2, kind: validates, weight: 0.5}
      - {from: b@2, to: a@1, kind: augments}
    run: {on_failure: fallback, fallback: a@1, timeout: 2, threshold: 0.5, record: digest,
          record_ttl: 60}
  write:
    type: ensemble
    strategy: product_of_experts
    members: [{model: a@1}, {model: b@2}]
    run: {level: tokens, max_tokens: 8, temperature: 1, seed: 3, stop: ["\\n", "no"]}
training:
  tune:
    model: made@2
    total_epochs: 3
    total_steps: 10
    config: {lr: 1.0e-05, seed: 7}
    dataset: {name: tales}
    group: g
    notes: n
    metrics: {best: loss, mode: max}
    retention: {keep_last: 1, keep_best: 2}
    logging: {flush_seconds: 2, system_seconds: 5, spool_bytes: 64KiB}
    gradient_checkpointing: {layers: [0, 2], dtype: BF16}
  plain: {model: b@2, gradient_checkpointing: {}}
inference:
  kv_cache: {budget: 1.5MiB, ttl: 7d, block_tokens: 16, codec: int8, quota: 1MiB, quotas: {x: 1}}
  activation_cache: {}
  attention_patterns: {budget: 1GiB, ttl: 90s, description: Short., tags: {a: b}}
"""


@pytest.fixture
def everything(tmp_path: Path) -> Desired:
    return desired(tmp_path, EVERYTHING)


def documents(found: Desired) -> dict[Any, JsonObject]:
    """As a database has them: what a number is does not matter, nor the order of keys."""
    specs = {key: each.spec.as_json() for key, each in found.declarations.items()}
    return {
        key: json.loads(json.dumps(spec, sort_keys=True), parse_int=float)
        for key, spec in specs.items()
    }


def as_recorded(found: Desired) -> dict[Any, Recorded]:
    recorded = {}
    for key, each in found.declarations.items():
        spec = json.loads(json.dumps(each.spec.as_json(), sort_keys=True))
        if key.kind == "model":
            source = getattr(each.spec, "tokenizer", None)
            spec |= {"weights": None, "tokenizer": {"source": source.label} if source else None}
        recorded[key] = Recorded(key=key, spec=spec, lifecycle=each.lifecycle)
    return recorded


def declared(recorded: dict[Any, Recorded]) -> str:
    sections: dict[str, JsonObject] = {section: {} for section in SECTIONS.values()}
    for block in blocks_of(recorded, PluginManager.load(), {}):
        assert block.remarks == block.unmanaged == ()
        sections[block.section][block.key.name] = block.data
    return "\n".join(mapping_lines(sections))


def test_every_field_of_every_kind_comes_back(everything: Desired, tmp_path: Path) -> None:
    text = declared(as_recorded(everything))
    again = desired(tmp_path, text)
    assert documents(again) == documents(everything)
    lifecycles = {key: each.lifecycle for key, each in everything.declarations.items()}
    assert {key: each.lifecycle for key, each in again.declarations.items()} == lifecycles
    assert any(each != Lifecycle() for each in lifecycles.values())
    assert declared(as_recorded(again)) == text


def test_what_follows_from_something_else_is_not_written(everything: Desired) -> None:
    text = declared(as_recorded(everything))
    assert "  calm:\n    uses: ties\n    params: {density: 0.25}\n" in text
    assert "    params: {scale: 0.5}\n" in text
    assert "attention_patterns:\n    budget: 1GiB\n    ttl: 90s\n" in text
    assert "made@2:" not in text
