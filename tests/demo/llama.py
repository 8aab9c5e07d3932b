"""A Llama forward pass from the formulas alone, in numpy: what the demo's losses are checked by.

RMSNorm, rotary embeddings (half-split), grouped-query attention and SwiGLU as the papers give
them (arXiv 1910.07467, 2104.09864, 2305.13245, 2002.05202). Weights in float32; the log-softmax
in float64.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
WINDOW = 256


def mean_nats(directory: Path, text: bytes, windows: int) -> float:
    """Mean nats per byte over the next-byte predictions of the first `windows` windows."""
    import ml_dtypes  # noqa: F401  safetensors asks numpy for bfloat16 by name
    from safetensors.numpy import load_file

    config = json.loads((directory / "config.json").read_text())
    weights = {
        name: tensor.astype(np.float32)
        for name, tensor in load_file(directory / "model.safetensors").items()
    }
    tokens = np.frombuffer(text, dtype=np.uint8)[: windows * WINDOW].reshape(windows, WINDOW)
    logits = forward(weights, config, tokens).astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    following = tokens[:, 1:, None].astype(np.int64)
    return float(-np.take_along_axis(log_probabilities[:, :-1], following, axis=-1).mean())


def forward(weights: Mapping[str, Array], config: Mapping[str, Any], tokens: Array) -> Array:
    """Logits [windows, positions, vocabulary] of byte tokens [windows, positions]."""
    eps = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        part = f"model.layers.{layer}"
        x = x + attention(
            weights, config, part, norm(x, weights[f"{part}.input_layernorm.weight"], eps)
        )
        y = norm(x, weights[f"{part}.post_attention_layernorm.weight"], eps)
        gate = y @ weights[f"{part}.mlp.gate_proj.weight"].T
        up = y @ weights[f"{part}.mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{part}.mlp.down_proj.weight"].T
    return norm(x, weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T


def norm(x: Array, scale: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(eps)) * scale


def attention(
    weights: Mapping[str, Array], config: Mapping[str, Any], part: str, x: Array
) -> Array:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["head_dim"]
    theta = config["rope_parameters"]["rope_theta"]
    q = rotate(split(x @ weights[f"{part}.self_attn.q_proj.weight"].T, heads, size), theta)
    k = rotate(split(x @ weights[f"{part}.self_attn.k_proj.weight"].T, kv_heads, size), theta)
    v = split(x @ weights[f"{part}.self_attn.v_proj.weight"].T, kv_heads, size)
    k, v = (np.repeat(t, heads // kv_heads, axis=1) for t in (k, v))
    scores = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(size))
    positions = x.shape[1]
    scores = np.where(np.tri(positions, dtype=bool), scores, np.float32(-np.inf))
    weighted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (weighted / weighted.sum(axis=-1, keepdims=True)) @ v
    joined = mixed.swapaxes(1, 2).reshape(x.shape[0], positions, heads * size)
    return joined @ weights[f"{part}.self_attn.o_proj.weight"].T


def split(x: Array, heads: int, size: int) -> Array:
    """[windows, positions, heads * size] as [windows, heads, positions, size]."""
    return x.reshape(x.shape[0], x.shape[1], heads, size).swapaxes(1, 2)


def rotate(x: Array, theta: float) -> Array:
    size, positions = x.shape[-1], x.shape[-2]
    frequencies = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angles = np.outer(np.arange(positions), frequencies)
    cos, sin = (
        f(np.concatenate([angles, angles], axis=-1)).astype(np.float32) for f in (np.cos, np.sin)
    )
    half = size // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cos + turned * sin
