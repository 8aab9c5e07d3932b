"""What configs and tensor names of the known families say, as their libraries write them."""

from __future__ import annotations

from typing import Any

import pytest

from arc_halo.architectures import (
    Architecture,
    LayerShape,
    TensorPart,
    read_architecture,
    tensor_part,
)

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 172,
    "hidden_act": "silu",
}
GPT2 = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "activation_function": "gelu_new",
}
BERT = {
    "model_type": "bert",
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 64,
    "hidden_act": "gelu",
}


def shape(config: dict[str, Any]) -> LayerShape:
    layer = read_architecture(config).layer
    assert layer is not None
    return layer


def test_a_llama_has_rotary_layers_and_shared_heads() -> None:
    assert read_architecture(LLAMA).layer_count == 3
    assert shape(LLAMA) == LayerShape(
        hidden_size=64, intermediate_size=172, num_heads=8, num_kv_heads=2, head_dim=8,
        activation="silu", normalization="rmsnorm", position_encoding="rotary",
    )  # fmt: skip
    assert shape({**LLAMA, "head_dim": 128}).head_dim == 128
    assert shape({**LLAMA, "num_key_value_heads": None}).num_kv_heads == 8


def test_a_gpt2_and_a_bert_are_known() -> None:
    assert read_architecture(GPT2).family == "gpt2"
    assert shape(GPT2).intermediate_size == 128
    assert shape(GPT2).activation == "gelu_new"
    assert shape({**GPT2, "n_inner": 77}).intermediate_size == 77
    assert (read_architecture(BERT).family, shape(BERT).position_encoding) == ("bert", "learned")


@pytest.mark.parametrize("kin", ["mistral", "qwen2", "qwen3", "Llama"])
def test_the_kin_of_llama_are_read_alike(kin: str) -> None:
    found = read_architecture({**LLAMA, "model_type": kin})
    assert (found.family, found.layer_count) == ("llama", 3)


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "mamba"}, {"model_type": None}, {"model_type": []}]
)
def test_an_unknown_family_has_no_layers(config: dict[str, Any]) -> None:
    assert read_architecture(config) == Architecture(family=None)


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "hidden_size"])
@pytest.mark.parametrize("value", [None, 0, -1, "3", 3.0, True, [], 2**31, 10**30])
def test_a_config_that_makes_no_sense_has_no_layers(key: str, value: object) -> None:
    found = read_architecture({**LLAMA, key: value})
    assert (found.family, found.layer) == ("llama", None)


@pytest.mark.parametrize("value", [10**9, 2**31 - 1])
def test_sizes_that_follow_fit_the_database_too(value: int) -> None:
    found = read_architecture({**LLAMA, "hidden_size": value, "intermediate_size": None}).layer
    assert found is None or (found.intermediate_size or 0) < 2**31


def test_no_config_makes_millions_of_rows() -> None:
    found = read_architecture({**LLAMA, "num_hidden_layers": 10_000, "num_attention_heads": 4_096})
    assert found.layer is None or found.layer_count * found.layer.num_heads <= 1_000_000


@pytest.mark.parametrize(
    ("family", "name", "weight_type", "layer"),
    [
        ("llama", "model.embed_tokens.weight", "token_embedding", None),
        ("llama", "model.layers.11.self_attn.q_proj.weight", "q_proj", 11),
        ("llama", "model.layers.0.self_attn.k_proj.bias", "k_proj", 0),
        ("llama", "model.layers.0.mlp.gate_proj.weight", "gate_proj", 0),
        ("llama", "model.layers.0.post_attention_layernorm.weight", "norm", 0),
        ("llama", "model.norm.weight", "norm", None),
        ("llama", "lm_head.weight", "lm_head", None),
        ("llama", "model.layers.0.mlp.router.weight", "other", 0),
        ("gpt2", "transformer.wte.weight", "token_embedding", None),
        ("gpt2", "wpe.weight", "position_embedding", None),
        ("gpt2", "transformer.h.3.attn.c_attn.weight", "qkv_proj", 3),
        ("gpt2", "h.3.attn.c_proj.bias", "o_proj", 3),
        ("gpt2", "h.3.mlp.c_proj.weight", "down_proj", 3),
        ("gpt2", "h.3.attn.bias", "other", 3),
        ("gpt2", "transformer.ln_f.weight", "norm", None),
        ("bert", "bert.embeddings.word_embeddings.weight", "token_embedding", None),
        ("bert", "embeddings.LayerNorm.weight", "norm", None),
        ("bert", "bert.encoder.layer.1.attention.self.query.weight", "q_proj", 1),
        ("bert", "bert.encoder.layer.1.attention.output.dense.bias", "o_proj", 1),
        ("bert", "bert.encoder.layer.1.output.dense.weight", "down_proj", 1),
        ("bert", "bert.pooler.dense.weight", "pooler", None),
        ("bert", "cls.predictions.transform.dense.weight", "other", None),
        (None, "model.layers.0.self_attn.q_proj.weight", "other", None),
        ("llama", "", "other", None),
    ],
)
def test_a_tensors_name_tells_its_part_and_layer(
    family: str | None, name: str, weight_type: str, layer: int | None
) -> None:
    assert tensor_part(family, name) == TensorPart(weight_type=weight_type, layer_index=layer)


def test_a_layer_number_beyond_all_reason_is_no_layer() -> None:
    part = tensor_part("llama", f"model.layers.{10**12}.self_attn.q_proj.weight")
    assert part.layer_index is None or part.layer_index < 2**31
