"""`halo.inference.kv_cache`: the cache of prompts as any engine has it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arc_halo
from arc_halo.api import Halo
from arc_halo.errors import ArcHaloError, DatabaseError, InvalidInputError, NotFoundError
from arc_halo.inference.layouts import KVLayout, LayerShape
from tests.inference.conftest import FULL, computed, same, shortened, tokens_of


@pytest.fixture
def halo(tmp_path: Path, database: str) -> Iterator[Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        model = opened.models.create_model(
            model_name="mine", version="1.0.0", model_type="transformer", architecture_config={}
        )
        opened.tensors.write(model, {"embed": np.eye(4, dtype="float32")})
        yield opened


def test_the_weights_are_a_registered_models_or_their_root(halo: Halo, database: str) -> None:
    tokens = tokens_of(1, 100)
    layers = computed(FULL, tokens)
    root = halo.models.get("mine").root
    assert root is not None
    with halo.inference.kv_cache(FULL, weights="mine@1.0.0", block_tokens=16) as cache:
        assert cache.store(tokens, layers)
        assert cache.flush(30)
    for weights in ("mine", bytes(root), f"sha256:{root.hex()}"):
        with halo.inference.kv_cache(FULL, weights=weights, block_tokens=16) as cache:
            found = cache.load(tokens)
            assert same(found.layers, shortened(FULL, layers, 96))
    for other in ({"weights": bytes(32)}, {"adapter": "b"}, {"tenant": "b"}, {"storage": "raw"}):
        given: dict[str, Any] = {"weights": "mine", "block_tokens": 16, **other}
        with halo.inference.kv_cache(FULL, **given) as cache:
            assert cache.load(tokens).length == 0


def test_weights_that_are_none_are_refused(halo: Halo) -> None:
    halo.models.create_model(
        model_name="bare", version="1", model_type="transformer", architecture_config={}
    )
    for weights, error in (
        ("nobody", NotFoundError),
        ("bare@1", NotFoundError),
        (b"short", InvalidInputError),
        ("sha256:12", InvalidInputError),
    ):
        with pytest.raises(error):
            halo.inference.kv_cache(FULL, weights=weights)


@pytest.mark.parametrize("tokens", [None, 5, "text", [1.5], [-1], [2**32], [None], [[1]]])
def test_what_is_no_token_is_refused(halo: Halo, tokens: Any) -> None:
    with halo.inference.kv_cache(FULL, weights="mine", block_tokens=1) as cache:
        for ask in (cache.match, cache.load, cache.pin, cache.unpin):
            with pytest.raises(ArcHaloError):
                ask(tokens)


@pytest.mark.parametrize("layers", [None, [], [None] * 3, 5])
def test_what_are_no_layers_is_refused(halo: Halo, layers: Any) -> None:
    with (
        halo.inference.kv_cache(FULL, weights="mine") as cache,
        pytest.raises(InvalidInputError),
    ):
        cache.store(tokens_of(1, 100), layers)


@pytest.mark.parametrize(
    "layout",
    [
        "x",
        None,
        KVLayout(dtype="F32", layers=({"heads": 2},)),  # type: ignore[arg-type]
        KVLayout(dtype="F32", layers=(LayerShape(heads="2", key_size=8, value_size=8),)),  # type: ignore[arg-type]
        KVLayout(dtype="F32", layers=FULL.layers, engine={"x": np.float32(3)}),
        KVLayout(dtype="F32", layers=FULL.layers, engine={"x": float("nan")}),
        KVLayout(dtype="F32", layers=FULL.layers, engine="mine"),  # type: ignore[arg-type]
        KVLayout(dtype="F99", layers=FULL.layers),
    ],
)
def test_what_is_no_layout_is_refused(halo: Halo, layout: Any) -> None:
    with pytest.raises(ArcHaloError):
        halo.inference.kv_cache(layout, weights="mine")


def test_a_cache_that_nobody_closed_is_closed_with_the_rest(database: str, tmp_path: Path) -> None:
    tokens = tokens_of(1, 100)
    with arc_halo.connect(database, project=tmp_path) as halo:
        cache = halo.inference.kv_cache(FULL, weights=bytes(32), block_tokens=16)
        assert cache.store(tokens, computed(FULL, tokens))
    with (
        arc_halo.connect(database, project=tmp_path) as halo,
        halo.inference.kv_cache(FULL, weights=bytes(32), block_tokens=16) as cache,
    ):
        assert cache.load(tokens).length == 96


def test_a_forked_process_leaves_the_connections_alone(halo: Halo) -> None:
    tokens = tokens_of(1, 100)
    with halo.inference.kv_cache(FULL, weights="mine", block_tokens=16) as cache:
        assert cache.store(tokens, computed(FULL, tokens))
        assert cache.flush(30)
        read, write = os.pipe()
        if os.fork() == 0:
            refused = 0
            for ask in (cache.match, cache.load, cache.pin, cache.unpin, _drawn(cache)):
                try:
                    ask(tokens)
                except DatabaseError as exc:
                    refused += "was forked from the one that opened" in exc.message
            os.write(write, bytes([refused, cache.store(tokens, computed(FULL, tokens))]))
            os._exit(0)
        os.close(write)
        assert os.read(read, 10) == bytes([5, False])
        os.close(read)
        os.wait()
        assert cache.load(tokens).length == 96


def _drawn(cache: Any) -> Callable[[Any], Any]:
    return lambda _: list(cache.sample(1))
