"""Caches of transformers as arrays, and back: bit by bit, or not at all."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_halo.errors import InvalidInputError
from tests.inference import torch_models as models

pytestmark = pytest.mark.torch
PREFIX, LENGTH = 70, 100


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("name", models.NAMES)
def test_restored_caches_give_the_logits_of_those_in_memory(name: str, dtype: str) -> None:
    from arc_halo.inference import dynamic_cache

    model, ids = models.tiny(name, dtype), models.tokens(LENGTH)
    engine = dynamic_cache.describe(model)
    memory = models.prefilled(model, ids[:PREFIX])
    restored = dynamic_cache.restore(
        model, engine, dynamic_cache.export(memory, engine.layout), PREFIX
    )
    assert restored.get_seq_length() == PREFIX
    assert models.logits(model, ids[PREFIX:], restored).equal(
        models.logits(model, ids[PREFIX:], memory)
    )


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("name", models.NAMES)
def test_any_shorter_prefix_of_what_was_recorded_goes_on_as_one_in_memory(
    name: str, dtype: str
) -> None:
    """Cut where there is no block's end: what slid out of a window is there again."""
    from arc_halo.inference import dynamic_cache

    model, ids = models.tiny(name, dtype), models.tokens(LENGTH)
    engine = dynamic_cache.describe(model)
    whole = dynamic_cache.export(models.prefilled(model, ids), engine.layout)
    assert [layer.start for layer in whole] == [0] * len(whole)
    for length in (5, 16, 17, PREFIX):
        cut = [
            replace(
                layer,
                start=first,
                keys=layer.keys[:, first:length],
                values=layer.values[:, first:length],
            )
            for layer, shape in zip(whole, engine.layout.layers, strict=True)
            for first in [0 if shape.window is None else max(0, length - shape.window + 1)]
        ]
        restored = dynamic_cache.restore(model, engine, cut, length)
        found = models.logits(model, ids[length:], restored)
        cold = models.logits(model, ids, dynamic_cache.new_cache(model))[:, length:]
        assert found.float().allclose(cold.float(), atol=models.TOLERANCE[dtype])
        assert found.argmax(-1).equal(cold.argmax(-1)) or dtype == "bfloat16"


@pytest.mark.parametrize("dtype", models.DTYPES)
def test_a_layer_that_records_answers_what_one_that_does_not_would(dtype: str) -> None:
    from arc_halo.inference import dynamic_cache

    model, ids = models.tiny("mistral", dtype), models.tokens(LENGTH)
    plain = dynamic_cache.new_cache(model, kept_tokens=0)
    records = dynamic_cache.new_cache(model)
    for part in (ids[:40], ids[40:41], ids[41:]):
        assert models.logits(model, part, records).equal(models.logits(model, part, plain))
    assert records.layers[0].keys.equal(plain.layers[0].keys)
    assert plain.layers[0].keys.shape[-2] == models.WINDOW - 1


def test_recording_a_prompt_takes_no_memory_beside_the_layer() -> None:
    model, ids = models.tiny("mistral"), models.tokens(LENGTH)
    layer = models.prefilled(model, ids).layers[0]
    for which, held in enumerate((layer.keys, layer.values)):
        recorded = layer.recorded[0][which]
        assert recorded.shape[-2] == LENGTH
        assert recorded.untyped_storage().data_ptr() == held.untyped_storage().data_ptr()


def test_a_token_is_recorded_without_the_window_before_it() -> None:
    model, ids = models.tiny("mistral"), models.tokens(LENGTH)
    cache = models.prefilled(model, ids)
    models.logits(model, ids[:1], cache)
    for tensor in cache.layers[0].recorded[1]:
        assert tensor.shape[-2] == 1
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_what_is_kept_beside_the_window_is_bounded() -> None:
    from arc_halo.inference import dynamic_cache

    model, ids = models.tiny("mistral"), models.tokens(LENGTH)
    layout = dynamic_cache.layout_of(model)
    whole = dynamic_cache.export(models.prefilled(model, ids), layout)
    cache = dynamic_cache.new_cache(model, kept_tokens=8)
    for begin, end in ((0, 60), *((at, at + 1) for at in range(60, LENGTH))):
        models.logits(model, ids[begin:end], cache)
        layer = dynamic_cache.export(cache, layout)[0]
        assert models.WINDOW - 1 + 8 <= layer.stop - layer.start <= models.WINDOW - 1 + 16
        assert sum(t.untyped_storage().nbytes() for t, _ in cache.layers[0].recorded) <= 31 * 64
    assert layer.stop == LENGTH
    expected = whole[0].keys[:, layer.start :]
    assert np.allclose(layer.keys, expected, atol=1e-5)


def test_without_records_a_window_has_its_true_place() -> None:
    from arc_halo.inference import dynamic_cache

    model, ids = models.tiny("mistral"), models.tokens(LENGTH)
    engine = dynamic_cache.describe(model)
    cache = dynamic_cache.new_cache(model, kept_tokens=0)
    models.logits(model, ids, cache)
    for layer in dynamic_cache.export(cache, engine.layout):
        assert (layer.start, layer.stop) == (LENGTH - models.WINDOW + 1, LENGTH)
    for layer in dynamic_cache.export(cache, engine.layout, stop=10):
        assert (layer.start, layer.stop, layer.keys.shape[1]) == (10, 10, 0)


def test_a_part_is_that_part_of_the_whole() -> None:
    from arc_halo.inference import dynamic_cache

    for name in models.NAMES:
        model, ids = models.tiny(name), models.tokens(LENGTH)
        engine = dynamic_cache.describe(model)
        cache = dynamic_cache.new_cache(model)
        for part in (ids[:30], ids[30:31], ids[31:]):
            models.logits(model, part, cache)
        whole = dynamic_cache.export(cache, engine.layout)
        part = dynamic_cache.export(cache, engine.layout, start=29, stop=64)
        for all_of_it, some in zip(whole, part, strict=True):
            assert (some.start, some.stop) == (29, 64)
            assert some.keys.tobytes() == all_of_it.keys[:, 29:64].tobytes()
            assert some.values.tobytes() == all_of_it.values[:, 29:64].tobytes()


def test_what_was_exported_is_not_the_memory_of_the_cache() -> None:
    from arc_halo.inference import dynamic_cache

    for name in models.NAMES:
        model = models.tiny(name)
        cache = models.prefilled(model, models.tokens(LENGTH))
        layout = dynamic_cache.layout_of(model)
        layers = dynamic_cache.export(cache, layout)
        before = [layer.keys.tobytes() for layer in layers]
        for layer in cache.layers:
            layer.keys.zero_()
            for keys, _ in getattr(layer, "recorded", ()):
                keys.zero_()
        assert [layer.keys.tobytes() for layer in layers] == before


@pytest.mark.parametrize("name", models.NAMES)
def test_a_snapshot_stays_what_it_was_while_the_cache_goes_on(name: str) -> None:
    from arc_halo.inference import dynamic_cache

    model, ids = models.tiny(name), models.tokens(LENGTH)
    cache = models.prefilled(model, ids[:40])
    models.logits(model, ids[40:], cache)
    layout = dynamic_cache.layout_of(model)
    copied, seen = dynamic_cache.export(cache, layout), dynamic_cache.snapshot(cache, layout)
    models.logits(model, ids, cache)
    for one, other in zip(copied, seen, strict=True):
        assert one.start == other.start
        for array, view in zip(one.both, other.both, strict=True):
            assert (array.shape, array.dtype, array.nbytes) == (view.shape, view.dtype, view.nbytes)
            assert array.tobytes() == view[:, :].tobytes()
            assert array[1:, 7:45].tobytes() == view[1:, 7:45].tobytes()
            assert view[:, :0].shape == array[:, :0].shape


def test_what_was_written_over_is_not_given_out() -> None:
    import torch

    from arc_halo.inference import dynamic_cache

    model = models.tiny("llama")
    layout = dynamic_cache.layout_of(model)
    cache = models.prefilled(model, models.tokens(LENGTH))
    (layer, *_) = dynamic_cache.snapshot(cache, layout)
    cache.layers[0].keys[0, 0, 0, 0] += 1
    with pytest.raises(InvalidInputError, match="written over"):
        layer.keys[:, :1]
    with torch.inference_mode():
        cache = models.prefilled(model, models.tokens(LENGTH))
        (layer, *_) = dynamic_cache.snapshot(cache, layout)
    assert layer.keys[:, :1].shape == (2, 1, 8)


def test_a_copy_of_a_cache_records_for_itself() -> None:
    from arc_halo.inference import dynamic_cache

    model, ids = models.tiny("mistral"), models.tokens(LENGTH)
    layout = dynamic_cache.layout_of(model)
    cache = models.prefilled(model, ids[:50])
    other = copy.deepcopy(cache)
    models.logits(model, ids[50:], other)
    assert dynamic_cache.export(cache, layout)[0].stop == 50
    assert dynamic_cache.export(other, layout)[0].stop == LENGTH
    assert dynamic_cache.export(other, layout)[0].start == 0


@pytest.mark.parametrize("change", ["reset", "crop", "reorder", "select"])
def test_rows_that_moved_are_not_recorded(change: str) -> None:
    import torch

    from arc_halo.inference import dynamic_cache

    model, ids = models.tiny("mistral"), models.tokens(10)
    cache = models.prefilled(model, ids)
    index = torch.tensor([0])
    {
        "reset": cache.reset,
        "crop": lambda: cache.crop(-2),
        "reorder": lambda: cache.reorder_cache(index),
        "select": lambda: cache.batch_select_indices(index),
    }[change]()
    models.logits(model, models.tokens(40, seed=2), cache)
    layer = dynamic_cache.export(cache, dynamic_cache.layout_of(model))[0]
    assert (layer.stop - layer.start, layer.stop) == (models.WINDOW - 1, cache.get_seq_length())


def test_a_batch_is_refused() -> None:
    import torch

    from arc_halo.inference import dynamic_cache
    from arc_halo.inference.causal_models import cache_argument

    model = models.tiny("llama")
    cache = dynamic_cache.new_cache(model)
    ids = torch.tensor([models.tokens(10), models.tokens(10, seed=2)])
    with torch.no_grad():
        model(input_ids=ids, **{cache_argument(model): cache})
    with pytest.raises(InvalidInputError, match="2 sequences"):
        dynamic_cache.export(cache, dynamic_cache.layout_of(model))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mamba", "LinearAttentionLayer"),
        ("qwen3_next", "LinearAttentionLayer"),
        ("llama4_text", "chunked_attention"),
        ("t5", "encoder"),
        ("dynamic", "dynamic rope"),
        ("longrope", "longrope rope"),
        ("narrow", "window of 1"),
        ("training", "in training"),
        ("module", "Linear is no model"),
        ("prompts", "tokens of its own"),
    ],
)
def test_models_with_other_state_are_refused_by_its_name(name: str, said: str) -> None:
    from arc_halo.inference import dynamic_cache

    with pytest.raises(InvalidInputError, match=said):
        dynamic_cache.layout_of(models.refused(name))


def test_caches_of_other_classes_are_refused_by_name() -> None:
    from transformers import StaticCache
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    from arc_halo.inference import dynamic_cache

    model = models.tiny("llama")
    layout = dynamic_cache.layout_of(model)
    static = StaticCache(config=model.config, max_cache_len=8)
    with pytest.raises(InvalidInputError, match="StaticCache"):
        dynamic_cache.export(static, layout)
    with pytest.raises(InvalidInputError, match="EncoderDecoderCache"):
        dynamic_cache.export(EncoderDecoderCache(DynamicCache(), DynamicCache()), layout)
    odd = models.prefilled(model, models.tokens(4))
    odd.layers[1] = static.layers[1]
    with pytest.raises(InvalidInputError, match="layer 1 of the cache is a StaticLayer"):
        dynamic_cache.export(odd, layout)


def test_too_few_tokens_are_not_restored() -> None:
    from arc_halo.inference import dynamic_cache

    model = models.tiny("mistral")
    engine = dynamic_cache.describe(model)
    layers = dynamic_cache.export(
        models.prefilled(model, models.tokens(40)), engine.layout, start=30
    )
    with pytest.raises(ValueError, match="not enough"):
        dynamic_cache.restore(model, engine, layers, 40)


def test_every_setting_that_decides_values_makes_another_layout(tmp_path: Path) -> None:
    import transformers

    from arc_halo.inference import dynamic_cache

    model = models.tiny("llama")
    rope = {"rope_type": "default", "rope_theta": 20_000.0}
    changes: list[dict[str, Any]] = [
        {},
        {"rope_parameters": rope},
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
        {"dtype": "bfloat16"},
        {"attn_implementation": "eager"},
    ]
    layouts = [dynamic_cache.layout_of(models.tiny("llama", **change)) for change in changes]
    layouts.append(dynamic_cache.layout_of(models.tiny("qwen2")))
    assert len({layout.digest() for layout in layouts}) == len(layouts)

    model.save_pretrained(tmp_path)
    again: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    again.config.use_cache = False
    assert dynamic_cache.layout_of(again).digest() == layouts[0].digest()
