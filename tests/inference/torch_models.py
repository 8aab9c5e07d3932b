"""Small random models of transformers, and what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np

NAMES = ("llama", "gpt2", "qwen2", "mistral", "gemma3_text")
DTYPES = ("float32", "bfloat16")
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}
WINDOW = 16
VOCABULARY = 64

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "qwen2": SIZES,
    "mistral": {**SIZES, "sliding_window": WINDOW},
    # Sliding layers and full ones in one model.
    "gemma3_text": {
        **SIZES,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def tiny(name: str, dtype: str = "float32", *, seed: int = 0, **changes: Any) -> Any:
    """A model in evaluation mode; the same one for the same seed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    implementation = changes.pop("attn_implementation", None)
    settings = {**SETTINGS.get(name, {}), **NO_TOKENS, "vocab_size": VOCABULARY, **changes}
    config = AutoConfig.for_model(name, **settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    return model.to(getattr(torch, dtype)).eval()


def refused(name: str) -> Any:
    """Models whose caches are neither stored nor restored."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    if name == "t5":
        sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        config = AutoConfig.for_model("t5", vocab_size=VOCABULARY, **sizes)
        return AutoModelForSeq2SeqLM.from_config(config).eval()
    if name == "module":
        return torch.nn.Linear(2, 2).eval()
    if name == "mamba":
        return tiny("mamba", hidden_size=32, num_hidden_layers=2)
    if name == "qwen3_next":
        return tiny("qwen3_next", **{**SIZES, "head_dim": 8, "num_hidden_layers": 4})
    if name == "llama4_text":
        sizes = {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2}
        return tiny("llama4_text", **SIZES, **sizes)
    if name == "narrow":
        return tiny("mistral", sliding_window=1)
    if name == "dynamic":
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
        return tiny("llama", rope_parameters=rope)
    if name == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
        rope = {"rope_type": "longrope", "factor": 2.0, "rope_theta": 10_000.0, **factors}
        return tiny("llama", rope_parameters={**rope, "original_max_position_embeddings": 256})
    model = tiny("llama")
    if name == "training":
        model.lm_head.train()
    if name == "prompts":
        model.peft_config = {"mine": type("Config", (), {"is_prompt_learning": True})()}
    return model


def tokens(count: int, *, seed: int = 1) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return found


def logits(model: Any, ids: list[int], cache: Any) -> Any:
    """What the model says to tokens that go on after a cache, which then has them too."""
    import torch

    from arc_halo.inference.causal_models import cache_argument

    with torch.no_grad():
        given = {cache_argument(model): cache, "use_cache": True}
        return model(input_ids=torch.tensor([ids]), **given).logits


def prefilled(model: Any, ids: list[int]) -> Any:
    """A cache that has these tokens, and has recorded them."""
    from arc_halo.inference import dynamic_cache

    return dynamic_cache.prefilled(model, ids)
