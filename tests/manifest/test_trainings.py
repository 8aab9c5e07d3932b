"""Trainings in a manifest: what they come to, and what is refused of them."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from arc_halo.errors import ManifestError, Problem
from arc_halo.manifest.documents import Declaration, RegisteredModel, TrainingSpec
from arc_halo.manifest.reading import read_manifest
from arc_halo.manifest.resolve import alias_references, resolve
from arc_halo.types import Key

MODELS = """
models:
  story@1:
    architecture:
      {model_type: llama, num_hidden_layers: 2, num_attention_heads: 4, hidden_size: 8}
  odd@1: {type: other}
"""


def declared(directory: Path, text: str, name: str = "tuning", **options) -> Declaration:
    whole = f"version: 1\nproject: p\n{MODELS}{textwrap.dedent(text)}"
    (directory / "arc_halo.yaml").write_text(whole)
    manifest = read_manifest(directory, env={})
    desired = resolve(manifest.sources, manifest.plugins, **options)
    return desired.declarations[Key(kind="training", name=name)]


def spec(directory: Path, text: str, **options) -> TrainingSpec:
    found = declared(directory, text, **options).spec
    assert isinstance(found, TrainingSpec)
    return found


def problem(directory: Path, text: str) -> Problem:
    with pytest.raises(ManifestError) as refused:
        declared(directory, text)
    (found,) = refused.value.problems
    return found


def test_a_training_needs_no_more_than_a_model(tmp_path):
    found = declared(tmp_path, "training: {tuning: {model: story}}")
    assert found.depends_on == (Key(kind="model", name="story@1"),)
    assert found.spec.as_json() == {
        "model": "story@1",
        "total_epochs": None,
        "total_steps": None,
        "config": {},
        "dataset": {},
        "group": None,
        "notes": None,
        "metrics": None,
        "retention": None,
        "logging": {
            "flush_seconds": 1.0,
            "heartbeat_seconds": 10.0,
            "system_seconds": None,
            "spool_bytes": 1073741824,
        },
        "gradient_checkpointing": None,
        "description": None,
        "tags": {},
    }


def test_parts_that_are_there_have_their_defaults_filled_in(tmp_path):
    found = spec(
        tmp_path,
        """
        training:
          tuning:
            model: story@1
            metrics: {best: loss}
            retention: {keep_every: 10}
            logging: {flush_seconds: 2, spool_bytes: 1MiB}
            gradient_checkpointing: {layers: [1]}
        """,
    )
    assert found.metrics == {"best": "train/loss", "mode": "min"}
    assert found.retention == {"keep_last": None, "keep_best": None, "keep_every": 10}
    assert found.logging["spool_bytes"] == 1048576
    assert isinstance(found.logging["flush_seconds"], float)
    assert found.gradient_checkpointing == {
        "layers": [1],
        "modules": None,
        "batch_size": 1,
        "sequence_length": None,
        "dtype": "F32",
        "attention": "sdpa",
    }


def test_what_a_merge_produces_can_be_trained_and_has_its_layers(tmp_path):
    merge = """
    reactors:
      blend:
        type: merge
        strategy: linear
        members: [{model: story}]
        produces: {model: blend, version: "2"}
    training: {tuning: {model: blend, gradient_checkpointing: {layers: [%d]}}}
    """
    assert spec(tmp_path, merge % 1).model == "blend@2"
    found = problem(tmp_path, merge % 2)
    assert (found.code, found.message) == ("AH007", "layer 2: blend@2 has 2 layers")


def test_an_alias_of_the_database_is_pinned_to_its_version(tmp_path):
    registered = {
        ("muse", "live"): RegisteredModel(
            name="muse", version="7", type="other", architecture={}, root=None
        )
    }
    text = "training: {tuning: {model: 'muse:live', gradient_checkpointing: {layers: [99]}}}"
    assert spec(tmp_path, text, registered=registered).model == "muse@7"
    manifest = read_manifest(tmp_path, env={})
    assert alias_references(manifest.sources) == {("muse", "live")}


def test_trainings_may_stand_in_an_included_file_and_once_only(tmp_path):
    (tmp_path / "more.yaml").write_text("training: {tuning: {model: story}}")
    assert declared(tmp_path, "include: [more.yaml]").where.file == "more.yaml"
    twice = "include: [more.yaml]\ntraining: {tuning: {model: story}}"
    assert problem(tmp_path, twice).code == "AH013"


@pytest.mark.parametrize(
    ("text", "place", "code", "message", "hint"),
    [
        (
            "model: stroy",
            "stroy",
            "AH020",
            "training.tuning refers to the model 'stroy', which is not declared",
            "did you mean 'story'?",
        ),
        (
            "model: story, retention: {keep_last: 2, keep_best: 1}",
            "keep_best",
            "AH027",
            "keep_best: nothing says which metric decides what is best",
            "add `metrics: {best: eval/loss}`",
        ),
        (
            "model: story, gradient_checkpointing: {layers: [1, 2]}",
            "2",
            "AH007",
            "layer 2: story@1 has 2 layers",
            "layers are counted from 0; the last one is 1",
        ),
        (
            "model: story, ignore: [confg]",
            "confg",
            "AH006",
            "training.tuning.ignore[0]: 'confg' is not allowed",
            "did you mean 'config'?",
        ),
    ],
)
def test_what_makes_no_sense_is_told_where_it_stands(tmp_path, text, place, code, message, hint):
    found = problem(tmp_path, f"training: {{tuning: {{{text}}}}}")
    assert found.snippet is not None
    assert found.snippet[found.column - 1 :][: found.length] == place
    assert (found.code, found.message, found.hint) == (code, message, hint)


def test_layers_of_a_model_whose_config_says_nothing_are_taken_on_trust(tmp_path):
    text = "training: {tuning: {model: odd, gradient_checkpointing: {layers: [7]}}}"
    assert spec(tmp_path, text).gradient_checkpointing["layers"] == [7]
