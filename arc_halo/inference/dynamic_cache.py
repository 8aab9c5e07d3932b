"""Caches of transformers as plain arrays, and back: `DynamicCache` alone, and a batch of one.

Full attention and sliding windows come and go. Whatever else a layer may keep (chunks, indexes,
recurrent or quantised state, the layers of a `StaticCache`) is refused by the name of its class, as
are models whose keys depend on more than the tokens before them.

What differs between versions of transformers:

- Layers as objects, with `cumulative_length` where they slide, and `DynamicCache(config=...)` came
  with 4.56; older ones are refused. `to_legacy_cache` and `key_cache` are gone in 5, and not used.
- A sliding layer that is filled counts what it was given, not what came before: its
  `cumulative_length` has to be set, or all that follows is silently wrong.
- `forward` and `generate` call the cache `past_key_values`, and `cache` from 5.24 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from arc_halo.errors import ArcHaloError
from arc_halo.inference.blocks import LayerKV
from arc_halo.inference.causal_models import (
    cache_argument,
    check_model,
    engine_of,
    plain,
    refusal,
)
from arc_halo.inference.layouts import KVLayout, LayerShape
from arc_halo.inference.tensor_views import TensorView
from arc_halo.tensors import dtypes
from arc_halo.tensors.torch_tensors import as_array, as_torch

try:
    import torch  # pyright: ignore[reportMissingImports]
    from transformers.cache_utils import (  # pyright: ignore[reportMissingImports]
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
    )
except ImportError as exc:
    raise ArcHaloError(
        "transformers 4.56 or newer is not installed",
        hint="pip install -U 'arc-halo[torch]'",
        code="AH030",
    ) from exc


class RecordingLayer(DynamicSlidingWindowLayer):  # type: ignore[misc]  # the base is untyped here
    """A sliding layer that also keeps what slides out, so that whole blocks can be stored of it:
    the last `kept_tokens` before its window, about, or all.

    What it answers is what one that does not would. Once rows are moved or tokens taken away it
    records no more: then there is its window alone.
    """

    def __init__(self, sliding_window: int, kept_tokens: int | None = None) -> None:
        super().__init__(sliding_window=sliding_window)
        self.kept_tokens = kept_tokens
        self.recorded: list[tuple[Any, Any]] | None = []
        self.recorded_from = 0

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.recorded is not None:
            self.recorded.append((_kept(key_states, keys), _kept(value_states, values)))
            self._forget()
        return keys, values

    def _forget(self) -> None:
        """Let go what is too old, some tokens at a time."""
        if self.kept_tokens is None or not self.recorded:
            return
        wanted = self.sliding_window - 1 + self.kept_tokens
        count = sum(keys.shape[-2] for keys, _ in self.recorded)
        if count > wanted + self.kept_tokens:
            both = [torch.cat([chunk[i] for chunk in self.recorded], dim=-2) for i in (0, 1)]
            keys, values = (each[..., -wanted:, :].clone() for each in both)
            self.recorded = [(keys, values)]
            self.recorded_from += count - wanted

    def reset(self) -> None:
        self.recorded = None
        super().reset()

    def crop(self, *args: Any, **kwargs: Any) -> None:
        self.recorded = None
        super().crop(*args, **kwargs)

    def reorder_cache(self, *args: Any, **kwargs: Any) -> None:
        self.recorded = None
        super().reorder_cache(*args, **kwargs)

    def batch_select_indices(self, *args: Any, **kwargs: Any) -> None:
        self.recorded = None
        super().batch_select_indices(*args, **kwargs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A model's cache: how it is laid out, and on which device each layer is."""

    layout: KVLayout
    devices: tuple[torch.device, ...]


def layout_of(model: Any) -> KVLayout:
    """How a model lays out its cache. Raises `InvalidInputError` for one that is refused."""
    return describe(model).layout


def describe(model: Any) -> Engine:
    """The same with the devices, from one forward pass over one token.

    Raises `InvalidInputError` for a model whose cache is not of full and sliding layers, and for
    one whose keys and values depend on more than the tokens before them.
    """
    check_model(model)
    cache = new_cache(model, kept_tokens=0)
    try:
        _forward(model, [0], cache)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as exc:
        # Some models ask for a cache of a class of their own.
        raise refusal(f"{type(plain(model)).__name__} takes no DynamicCache: {exc}") from exc
    check_cache(cache)
    shapes = [_shape(index, layer) for index, layer in enumerate(cache.layers)]
    kinds = {dtypes.name_of(as_array(each).dtype) for x in cache.layers for each in _both(x)}
    if len(kinds) != 1:
        raise refusal(f"keys and values are of {' and '.join(sorted(kinds))}")
    layout = KVLayout(dtype=kinds.pop(), layers=tuple(shapes), engine=engine_of(model))
    return Engine(layout=layout, devices=tuple(layer.keys.device for layer in cache.layers))


def new_cache(model: Any, *, kept_tokens: int | None = None) -> DynamicCache:
    """An empty cache for a model, whose sliding layers keep so many tokens that slide out: all
    without a number, none with 0."""
    cache = DynamicCache(config=plain(model).config)
    if cache.layers:
        check_cache(cache)
    if kept_tokens != 0:
        cache.layers = [
            RecordingLayer(layer.sliding_window, kept_tokens) if _is_sliding(layer) else layer
            for layer in cache.layers
        ]
    return cache


def check_cache(cache: Any) -> None:
    """Raise `InvalidInputError` unless it is a `DynamicCache` of full and sliding layers."""
    if type(cache) is not DynamicCache:
        raise refusal(f"a {type(cache).__name__} is no DynamicCache")
    for index, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer and not _is_sliding(layer):
            raise refusal(f"layer {index} of the cache is a {type(layer).__name__}")
        if _is_sliding(layer) and layer.sliding_window < 2:
            raise refusal(f"layer {index} of the cache has a window of {layer.sliding_window}")


def prefilled(model: Any, tokens: Sequence[int]) -> DynamicCache:
    """A cache that has these tokens, all of which its sliding layers kept."""
    cache = new_cache(model)
    _forward(model, tokens, cache)
    return cache


def snapshot(
    cache: Any, layout: KVLayout, *, stop: int | None = None, rows_are_alike: bool = False
) -> list[LayerKV]:
    """What a cache has of the tokens up to `stop`, as arrays that are read when they are sliced:
    the cache may go on, for it puts other tensors in place of those that it has.

    Sliding layers have what they recorded, or their window. Raises `InvalidInputError` for a batch
    of more than one, unless `rows_are_alike` up to `stop`, and for layers that are refused.
    """
    check_cache(cache)
    if len(cache.layers) != len(layout.layers):
        raise refusal(f"a cache of {len(cache.layers)} layers, not {len(layout.layers)}")
    length = int(cache.get_seq_length())
    end = length if stop is None else min(stop, length)
    found = []
    for index, layer in enumerate(cache.layers):
        if layer.keys.shape[0] != 1 and not rows_are_alike:
            raise refusal(f"a batch of {layer.keys.shape[0]} sequences, not of one")
        if layer.get_seq_length() != length:
            raise refusal(f"layer {index} has {layer.get_seq_length()} tokens, not {length}")
        found.append(_viewed(layer, end))
    return found


def export(
    cache: Any, layout: KVLayout, *, start: int = 0, stop: int | None = None
) -> list[LayerKV]:
    """Copies of what a cache has of the tokens from `start` to `stop`; else as `snapshot`."""
    found = []
    for layer in snapshot(cache, layout, stop=stop):
        begin = min(max(start - layer.start, 0), layer.keys.shape[1])
        keys, values = (array[:, begin:] for array in layer.both)
        found.append(LayerKV(keys=keys, values=values, start=layer.start + begin))
    return found


def restore(
    model: Any,
    engine: Engine,
    layers: Sequence[LayerKV],
    length: int,
    *,
    kept_tokens: int | None = None,
) -> DynamicCache:
    """A cache that has these keys and values, of the first `length` tokens."""
    cache = new_cache(model, kept_tokens=kept_tokens)
    while len(cache.layers) < len(layers):
        cache.layers.append(DynamicLayer())
    for layer, given, device in zip(cache.layers, layers, engine.devices, strict=True):
        needed = max(0, length - layer.sliding_window + 1) if _is_sliding(layer) else 0
        if given.stop != length or given.start > needed:
            raise ValueError(f"tokens {given.start} to {given.stop} are not enough for {length}")
        keys, values = (
            as_torch(np.ascontiguousarray(array), engine.layout.dtype)[None].to(device)
            for array in given.both
        )
        layer.update(keys, values)
        if _is_sliding(layer):
            layer.cumulative_length = length
        if isinstance(layer, RecordingLayer):
            layer.recorded_from = given.start
    return cache


def _forward(model: Any, tokens: Sequence[int], cache: DynamicCache) -> None:
    ids = torch.tensor([tokens], dtype=torch.long, device=model.device)
    with torch.no_grad():
        model(input_ids=ids, use_cache=True, **{cache_argument(model): cache})


def _is_sliding(layer: Any) -> bool:
    return type(layer) in (DynamicSlidingWindowLayer, RecordingLayer)


def _shape(index: int, layer: Any) -> LayerShape:
    keys, values = layer.keys, layer.values
    if keys is None or keys.ndim != 4 or values.ndim != 4 or keys.shape[0] != 1:
        raise refusal(f"layer {index} of the cache holds nothing after a token")
    if keys.shape[1] != values.shape[1] or keys.shape[2] != 1 or values.shape[2] != 1:
        raise refusal(f"layer {index} has keys {tuple(keys.shape)}, values {tuple(values.shape)}")
    return LayerShape(
        heads=keys.shape[1],
        key_size=keys.shape[3],
        value_size=values.shape[3],
        window=layer.sliding_window if _is_sliding(layer) else None,
    )


def _both(layer: Any) -> tuple[Any, Any]:
    return layer.keys, layer.values


def _viewed(layer: Any, stop: int) -> LayerKV:
    """Of the first row, as much as there is of the tokens before `stop`."""
    if isinstance(layer, RecordingLayer) and layer.recorded:
        first, chunks = layer.recorded_from, layer.recorded
    elif _is_sliding(layer):
        first, chunks = layer.cumulative_length - layer.keys.shape[-2], [_both(layer)]
    else:
        first, chunks = 0, [_both(layer)]
    start = min(first, stop)
    keys, values = (
        TensorView([chunk[which] for chunk in chunks], start - first, stop - first)
        for which in (0, 1)
    )
    return LayerKV(keys=cast(Any, keys), values=cast(Any, values), start=start)


def _kept(new: Any, whole: Any) -> Any:
    """New tokens of the first row in the memory that takes least: that of the layer, which is there
    anyway after a prompt, or one of their own, for they may be part of a projection's."""
    count = new.shape[-2]
    if 2 * count >= whole.shape[-2] and whole.shape[0] == 1:
        return whole[..., -count:, :]
    row = new[:1]
    return row.clone() if new.untyped_storage().nbytes() > row.nbytes else row
