"""Where a database comes from does not matter: applying a manifest always ends in the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

NAMES = ("a", "b", "c")
SEEDS = (1, 2, 3)
Manifest = dict[str, Any]

LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 4}
ARCHITECTURES = [{}, LLAMA, {"tie": True}, {"tie": 1}, {"tie": None}, {"rope": {"theta": 1e6}}]

MODELS = st.fixed_dictionaries(
    {"type": st.sampled_from(["transformer", "other"]), "weights": st.sampled_from(SEEDS)},
    optional={
        "architecture": st.sampled_from(ARCHITECTURES),
        "description": st.sampled_from(["", "x"]),
        "aliases": st.sampled_from([[], ["live"], ["live", "old"]]),
        "tags": st.sampled_from([{}, {"n": 1}, {"n": True}]),
        "protected": st.just(False),
    },
)


CACHES = st.fixed_dictionaries(
    {},
    optional={
        "kv_cache": st.sampled_from([{}, {"budget": "1.5MiB", "quotas": {"a b": "1kB"}}]),
        "attention_patterns": st.sampled_from([{}, {"ttl": "999999d", "tags": {"a": 1}}]),
    },
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Up to three models, merges of them, and merges of merges."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    models = {f"{name}@1": draw(MODELS) for name in names}
    strategies = draw(st.sampled_from([{}, {"even": {"uses": "linear"}}]))
    known = list(models)
    reactors = {}
    for output in draw(st.lists(st.sampled_from("xyz"), unique=True, max_size=2)):
        if known:
            members = draw(st.lists(st.sampled_from(known), unique=True, min_size=1, max_size=3))
            reactors[f"make-{output}"] = _merge(draw, output, members, strategies)
            known.append(f"{output}@1")
    wanted = draw(st.lists(st.sampled_from("tu"), unique=True, max_size=2))
    return {
        "settings": {"prune": True},
        "models": {
            name: {**model, "weights": f"{model['weights']}.safetensors"}
            for name, model in models.items()
        },
        "strategies": strategies,
        "reactors": reactors,
        "training": {name: _training(draw, known) for name in wanted if known},
        "inference": draw(CACHES),
    }


def _merge(draw: st.DrawFn, output: str, members: list[str], strategies: Manifest) -> Manifest:
    weights = st.sampled_from([0.5, 1, 2])
    return {
        "type": "merge",
        "strategy": draw(st.sampled_from(["linear", *strategies])),
        "members": [{"model": name, "weight": draw(weights)} for name in members],
        "produces": {"model": output, "version": "1"},
        **draw(st.sampled_from([{}, {"config": {"k": 1}}, {"base": members[0]}])),
        **(
            {"interactions": [{"from": members[0], "to": members[1], "kind": "augments"}]}
            if len(members) > 1 and draw(st.booleans())
            else {}
        ),
    }


def _training(draw: st.DrawFn, models: list[str]) -> Manifest:
    return {
        "model": draw(st.sampled_from(models)),
        **draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "total_steps": st.sampled_from([1, 2**53 - 1]),
                    "config": st.sampled_from([{}, {"lr": 1e-30, "deep": [None, {"x": True}]}]),
                    "metrics": st.sampled_from(
                        [{"best": "loss"}, {"best": "a/b/c", "mode": "max"}]
                    ),
                    "retention": st.sampled_from([{"keep_last": 1}, {"keep_every": 10}]),
                    "logging": st.just({"flush_seconds": 2, "spool_bytes": "1MiB"}),
                    "gradient_checkpointing": st.sampled_from([{}, {"layers": {"every": 2}}]),
                },
            )
        ),
    }


@pytest.fixture(scope="module")
def workshop(
    tmp_path_factory: pytest.TempPathFactory,
    create_database: Any,
    template: str,
    make_workshop: Any,
) -> Iterator[Any]:
    workshop = make_workshop(tmp_path_factory.mktemp("convergence"), create_database(template))
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        workshop.weights(f"{seed}.safetensors", {"t": random.random((3, 2), np.float32)})
    return workshop


# Shrinking would take minutes; the examples are small anyway.
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(first=manifests(), second=manifests())
def test_two_applies_end_where_the_second_alone_does(
    workshop: Any, dump: Any, first: Manifest, second: Manifest
) -> None:
    with psycopg.connect(workshop.url, autocommit=True, prepare_threshold=None) as conn:
        workshop.write(second)
        workshop.destroy()
        assert conn.execute("SELECT count(*) FROM managed_resources").fetchone() == (0,)
        workshop.apply(second)
        alone = dump(conn)
        workshop.destroy()
        workshop.apply(first)
        workshop.apply(second)
        assert dump(conn) == alone
        assert not workshop.plan().has_changes
