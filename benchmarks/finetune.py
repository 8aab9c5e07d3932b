"""A small real fine-tune of the demo's language model, in numpy alone.

The model is a Llama: RMSNorm, rotary embeddings (half-split), grouped-query attention and SwiGLU
as the papers give them (arXiv 1910.07467, 2104.09864, 2305.13245, 2002.05202). Gradients are
written out by hand; the optimiser is AdamW (arXiv 1711.05101). All of it is in the dtype of the
weights given, float32 when training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Tokens = NDArray[np.uint8]
Weights = dict[str, Array]
Gradients = dict[str, Array]
Backward = Callable[[Array], Array]
"""From the gradient of an output to that of its input; weights' gradients are noted on the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a config.json says of the model's form."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    theta: float
    eps: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        return cls(
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_size=config["head_dim"],
            theta=config["rope_parameters"]["rope_theta"],
            eps=config["rms_norm_eps"],
        )


def train(
    weights: Weights,
    shape: Shape,
    text: bytes,
    *,
    steps: int,
    windows: int = 8,
    window: int = 128,
    rate: float = 2e-5,
    seed: int = 0,
) -> list[float]:
    """Change `weights` by AdamW on random windows of `text`; the loss before each step, in nats."""
    generator = np.random.default_rng(seed)
    tokens = np.frombuffer(text, np.uint8)
    first = {name: np.zeros_like(array) for name, array in weights.items()}
    second = {name: np.zeros_like(array) for name, array in weights.items()}
    losses = []
    for step in range(1, steps + 1):
        starts = generator.integers(0, len(tokens) - window - 1, windows)
        batch = np.stack([tokens[start : start + window + 1] for start in starts])
        loss, gradients = loss_and_gradients(weights, shape, batch)
        losses.append(loss)
        for name, gradient in gradients.items():
            _adamw(weights[name], first[name], second[name], gradient, step, rate)
    return losses


def loss_and_gradients(weights: Weights, shape: Shape, batch: Tokens) -> tuple[float, Gradients]:
    """Mean nats of predicting each next byte of `batch` [windows, positions + 1]."""
    gradients: Gradients = {}
    logits, backward = forward(weights, shape, batch[:, :-1], gradients)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    following = batch[:, 1:, None].astype(np.int64)
    loss = -np.take_along_axis(log_probabilities, following, axis=-1).mean()
    gradient = np.exp(log_probabilities)
    np.put_along_axis(
        gradient, following, np.take_along_axis(gradient, following, axis=-1) - 1, axis=-1
    )
    backward(gradient / following.size)
    return float(loss), gradients


def forward(
    weights: Weights, shape: Shape, tokens: Tokens, gradients: Gradients
) -> tuple[Array, Backward]:
    """Logits of byte tokens [windows, positions]; `backward` fills `gradients`."""
    table = "model.embed_tokens.weight"
    steps: list[Backward] = []
    x = weights[table][tokens]
    for layer in range(shape.layers):
        part = f"model.layers.{layer}"
        for block, norm_name in ((_attention, "input"), (_mlp, "post_attention")):
            name = f"{part}.{norm_name}_layernorm.weight"
            normed, norm_back = _norm(weights, name, shape.eps, x, gradients)
            y, block_back = block(weights, shape, part, normed, gradients)
            steps.append(_residual(norm_back, block_back))
            x = x + y
    normed, norm_back = _norm(weights, "model.norm.weight", shape.eps, x, gradients)
    logits, head_back = _linear(weights, "lm_head.weight", normed, gradients)

    def backward(gradient: Array) -> Array:
        gradient = norm_back(head_back(gradient))
        for step in reversed(steps):
            gradient = step(gradient)
        gradients[table] = np.zeros_like(weights[table])
        np.add.at(gradients[table], tokens, gradient)
        return gradient

    return logits, backward


def _residual(norm_back: Backward, block_back: Backward) -> Backward:
    return lambda gradient: gradient + norm_back(block_back(gradient))


def _linear(weights: Weights, name: str, x: Array, gradients: Gradients) -> tuple[Array, Backward]:
    weight = weights[name]

    def backward(gradient: Array) -> Array:
        flat = gradient.reshape(-1, weight.shape[0])
        gradients[name] = flat.T @ x.reshape(-1, weight.shape[1])
        return (flat @ weight).reshape(x.shape)

    return x @ weight.T, backward


def _norm(
    weights: Weights, name: str, eps: float, x: Array, gradients: Gradients
) -> tuple[Array, Backward]:
    scale = weights[name]
    inverse = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.asarray(eps, x.dtype))
    unit = x * inverse

    def backward(gradient: Array) -> Array:
        gradients[name] = (gradient * unit).reshape(-1, scale.size).sum(axis=0)
        scaled = gradient * scale
        return inverse * (scaled - unit * (scaled * unit).mean(axis=-1, keepdims=True))

    return unit * scale, backward


def _mlp(
    weights: Weights, shape: Shape, part: str, x: Array, gradients: Gradients
) -> tuple[Array, Backward]:
    gate, gate_back = _linear(weights, f"{part}.mlp.gate_proj.weight", x, gradients)
    up, up_back = _linear(weights, f"{part}.mlp.up_proj.weight", x, gradients)
    sigmoid = 1 / (1 + np.exp(-gate))
    y, down_back = _linear(weights, f"{part}.mlp.down_proj.weight", gate * sigmoid * up, gradients)

    def backward(gradient: Array) -> Array:
        inner = down_back(gradient)
        slope = sigmoid * (1 + gate * (1 - sigmoid))
        return gate_back(inner * up * slope) + up_back(inner * gate * sigmoid)

    return y, backward


def _attention(
    weights: Weights, shape: Shape, part: str, x: Array, gradients: Gradients
) -> tuple[Array, Backward]:
    part = f"{part}.self_attn"
    groups, size = shape.heads // shape.kv_heads, shape.head_size
    queries, q_back = _linear(weights, f"{part}.q_proj.weight", x, gradients)
    keys, k_back = _linear(weights, f"{part}.k_proj.weight", x, gradients)
    values, v_back = _linear(weights, f"{part}.v_proj.weight", x, gradients)
    turn = _turns(x.shape[1], size, shape.theta, x.dtype)
    q = _rotate(_split(queries, shape.heads), turn)
    k = _rotate(_split(keys, shape.kv_heads), turn).repeat(groups, axis=1)
    v = _split(values, shape.kv_heads).repeat(groups, axis=1)
    scale = np.asarray(1 / np.sqrt(size), x.dtype)
    scores = np.where(np.tri(x.shape[1], dtype=bool), q @ k.swapaxes(-1, -2) * scale, -np.inf)
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True)).astype(x.dtype)
    shares = raised / raised.sum(axis=-1, keepdims=True)
    y, o_back = _linear(weights, f"{part}.o_proj.weight", _join(shares @ v), gradients)

    def backward(gradient: Array) -> Array:
        mixed = _split(o_back(gradient), shape.heads)
        to_shares = mixed @ v.swapaxes(-1, -2)
        to_scores = shares * (to_shares - (to_shares * shares).sum(axis=-1, keepdims=True))
        to_scores *= scale
        to_k = _pooled(to_scores.swapaxes(-1, -2) @ q, groups)
        return (
            q_back(_join(_rotate(to_scores @ k, turn, back=True)))
            + k_back(_join(_rotate(to_k, turn, back=True)))
            + v_back(_join(_pooled(shares.swapaxes(-1, -2) @ mixed, groups)))
        )

    return y, backward


def _split(x: Array, heads: int) -> Array:
    """[windows, positions, heads * size] as [windows, heads, positions, size]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).swapaxes(1, 2)


def _join(x: Array) -> Array:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _pooled(x: Array, groups: int) -> Array:
    """The gradient of a head that `groups` query heads share."""
    return x.reshape(x.shape[0], -1, groups, *x.shape[2:]).sum(axis=2)


def _turns(positions: int, size: int, theta: float, dtype: Any) -> tuple[Array, Array]:
    """Cosines and sines [positions, size] of the rotary embedding."""
    frequencies = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angles = np.tile(np.outer(np.arange(positions), frequencies), 2)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def _rotate(x: Array, turn: tuple[Array, Array], *, back: bool = False) -> Array:
    """Rotate by position; `back` is the inverse, which is the transpose."""
    cos, sin = turn
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cos - turned * sin if back else x * cos + turned * sin


def _adamw(
    weight: Array, first: Array, second: Array, gradient: Array, step: int, rate: float
) -> None:
    """One step in place: betas 0.9 and 0.999, epsilon 1e-8, decay 0.01 of matrices only."""
    first += (1 - 0.9) * (gradient - first)
    second += (1 - 0.999) * (gradient * gradient - second)
    if weight.ndim > 1:
        weight *= 1 - rate * 0.01
    root = np.sqrt(second / (1 - 0.999**step)) + 1e-8
    weight -= (rate / (1 - 0.9**step)) * first / root
