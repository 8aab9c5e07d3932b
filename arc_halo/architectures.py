"""Layers, attention heads and the parts tensors play, read off a model's config and names.

Known families: Llama and its kin (Mistral, Qwen, Gemma: the same config keys and tensor names),
GPT-2 and BERT. A model of another family is registered all the same, without layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arc_halo.types import JsonObject

MAX_SIZE = 2**31
MAX_LAYERS, MAX_HEADS, MAX_ROWS = 10_000, 4_096, 1_000_000
"""Beyond these a config is taken for a mistake, and its layers are not written as rows."""


LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
LAYER_LISTS = ("layer_types",)
VOCABULARY_SIZE = "vocab_size"
VOCABULARY_PARTS = ("token_embedding", "lm_head")
VOCABULARY_WORDS = ("embed", "wte", "lm_head", "output", "shared", "predictions")
OTHER_WORDS = ("position", "wpe", "token_type", "segment", "patch", "norm", "dense")
"""What names of embeddings and outputs have in them, and what those of other rows have."""

TORCH_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where a family's configs keep what we read, and how its tensors are named."""

    name: str
    model_types: tuple[str, ...]
    layers: str
    heads: str
    hidden: str
    intermediate: str
    activation: str
    normalization: str
    position_encoding: str
    layer_pattern: re.Pattern[str]
    parts: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """All layers of the known families are alike; sizes count elements."""

    hidden_size: int
    intermediate_size: int | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    activation: str | None
    normalization: str
    position_encoding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a config tells: `family` is None when it is not one we know."""

    family: str | None
    layer_count: int = 0
    layer: LayerShape | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPart:
    """What a tensor is in its model, and the layer it stands in, if in one."""

    weight_type: str
    layer_index: int | None = None


LLAMA = Family(
    name="llama",
    model_types=(
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "phi3",
        "granite",
        "olmo",
        "olmo2",
        "stablelm",
        "starcoder2",
        "cohere",
        "smollm3",
    ),
    layers="num_hidden_layers",
    heads="num_attention_heads",
    hidden="hidden_size",
    intermediate="intermediate_size",
    activation="hidden_act",
    normalization="rmsnorm",
    position_encoding="rotary",
    layer_pattern=re.compile(r"(?:^|\.)layers\.(\d{1,6})\.(.+)$"),
    parts={
        "embed_tokens": "token_embedding",
        "lm_head": "lm_head",
        "self_attn.q_proj": "q_proj",
        "self_attn.k_proj": "k_proj",
        "self_attn.v_proj": "v_proj",
        "self_attn.o_proj": "o_proj",
        "self_attn.qkv_proj": "qkv_proj",
        "self_attn.q_norm": "norm",
        "self_attn.k_norm": "norm",
        "mlp.gate_proj": "gate_proj",
        "mlp.up_proj": "up_proj",
        "mlp.down_proj": "down_proj",
        "mlp.gate_up_proj": "gate_up_proj",
        "input_layernorm": "norm",
        "post_attention_layernorm": "norm",
        "norm": "norm",
        "pre_feedforward_layernorm": "norm",
        "post_feedforward_layernorm": "norm",
    },
)

GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    layers="n_layer",
    heads="n_head",
    hidden="n_embd",
    intermediate="n_inner",
    activation="activation_function",
    normalization="layernorm",
    position_encoding="learned",
    layer_pattern=re.compile(r"(?:^|\.)h\.(\d{1,6})\.(.+)$"),
    parts={
        "wte": "token_embedding",
        "wpe": "position_embedding",
        "lm_head": "lm_head",
        "attn.c_attn": "qkv_proj",
        "attn.c_proj": "o_proj",
        "mlp.c_fc": "up_proj",
        "mlp.c_proj": "down_proj",
        "ln_1": "norm",
        "ln_2": "norm",
        "ln_f": "norm",
    },
)

BERT = Family(
    name="bert",
    model_types=("bert", "roberta", "xlm-roberta", "electra"),
    layers="num_hidden_layers",
    heads="num_attention_heads",
    hidden="hidden_size",
    intermediate="intermediate_size",
    activation="hidden_act",
    normalization="layernorm",
    position_encoding="learned",
    layer_pattern=re.compile(r"(?:^|\.)encoder\.layer\.(\d{1,6})\.(.+)$"),
    parts={
        "embeddings.word_embeddings": "token_embedding",
        "embeddings.position_embeddings": "position_embedding",
        "embeddings.token_type_embeddings": "segment_embedding",
        "embeddings.LayerNorm": "norm",
        "attention.self.query": "q_proj",
        "attention.self.key": "k_proj",
        "attention.self.value": "v_proj",
        "attention.output.dense": "o_proj",
        "attention.output.LayerNorm": "norm",
        "intermediate.dense": "up_proj",
        "output.dense": "down_proj",
        "output.LayerNorm": "norm",
        "pooler.dense": "pooler",
    },
)

FAMILIES = (LLAMA, GPT2, BERT)
_BY_TYPE = {name: family for family in FAMILIES for name in family.model_types}
_BY_NAME = {family.name: family for family in FAMILIES}


def read_architecture(config: JsonObject) -> Architecture:
    """What `config` (a `config.json`, or a mapping of its kind) says of the layers."""
    family = _BY_TYPE.get(str(config.get("model_type", "")).lower())
    if family is None:
        return Architecture(family=None)
    layers, heads, hidden = (_size(config, k) for k in (family.layers, family.heads, family.hidden))
    is_sane = 0 < layers <= MAX_LAYERS and 0 < heads <= MAX_HEADS and hidden
    if not is_sane or layers * heads > MAX_ROWS:
        return Architecture(family=family.name)
    return Architecture(
        family=family.name, layer_count=layers, layer=_layer(family, config, heads, hidden)
    )


def changed_architecture(
    config: JsonObject,
    *,
    layers: Sequence[int] | None = None,
    dtype: str | None = None,
    vocabulary: int | None = None,
) -> JsonObject:
    """The config of a model that has these layers of the one it was made from, or another dtype,
    or rows for another vocabulary.

    Only what the config says already is changed: its number of layers, what it lists for each of
    them, its dtype and its `vocab_size`, by their usual names.
    """
    changed = dict(config)
    if vocabulary is not None and VOCABULARY_SIZE in changed:
        changed[VOCABULARY_SIZE] = vocabulary
    if layers is not None:
        for key in LAYER_COUNTS:
            if key in changed:
                changed[key] = len(layers)
        for key in LAYER_LISTS:
            listed = changed.get(key)
            if isinstance(listed, list) and all(layer < len(listed) for layer in layers):
                changed[key] = [listed[layer] for layer in layers]
    if dtype in TORCH_DTYPES:
        for key in ("torch_dtype", "dtype"):
            if key in changed:
                changed[key] = TORCH_DTYPES[dtype]
    return changed


def tensor_part(family: str | None, name: str) -> TensorPart:
    """The part the tensor `name` plays in a model of `family`; `other` when it is not known."""
    known = _BY_NAME.get(family or "")
    if known is None:
        return TensorPart(weight_type="other")
    match = known.layer_pattern.search(name)
    inner = match[2] if match else name
    return TensorPart(
        weight_type=_part(known, inner.removesuffix(".weight").removesuffix(".bias")),
        layer_index=int(match[1]) if match else None,
    )


def is_vocabulary_tensor(name: str, shape: Sequence[int], size: int) -> bool:
    """Whether a tensor has a row for each of `size` tokens, and perhaps some more as padding.

    So it is for the embedding and the output of every family we know, and for what is called
    like one, stands in no layer and has as many rows.
    """
    parts = {tensor_part(family.name, name).weight_type for family in FAMILIES}
    if not parts.isdisjoint(VOCABULARY_PARTS):
        return len(shape) in (1, 2)
    return (
        len(shape) in (1, 2)
        and shape[0] >= size
        and not any(word.isdigit() for word in name.split("."))
        and any(word in name for word in VOCABULARY_WORDS)
        and not any(word in name.lower() for word in OTHER_WORDS)
    )


def _part(family: Family, name: str) -> str:
    """The longest known suffix decides, since prefixes (`model.`, `bert.`) vary."""
    words = name.split(".")
    for start in range(len(words)):
        if part := family.parts.get(".".join(words[start:])):
            return part
    return "other"


def _layer(family: Family, config: JsonObject, heads: int, hidden: int) -> LayerShape:
    return LayerShape(
        hidden_size=hidden,
        intermediate_size=_size(config, family.intermediate) or _storable(4 * hidden),
        num_heads=heads,
        num_kv_heads=_size(config, "num_key_value_heads") or heads,
        head_dim=_size(config, "head_dim") or max(hidden // heads, 1),
        activation=_text(config.get(family.activation)),
        normalization=family.normalization,
        position_encoding=family.position_encoding,
    )


def _size(config: JsonObject, key: str) -> int:
    value = config.get(key)
    is_size = isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_SIZE
    return value if is_size and isinstance(value, int) else 0


def _storable(size: int) -> int | None:
    """The size, or None for one that no real model has and a column cannot hold."""
    return size if size < MAX_SIZE else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
