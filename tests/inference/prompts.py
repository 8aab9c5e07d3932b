"""Prompts of tiny models, with the cache and without it."""

from __future__ import annotations

from typing import Any

from arc_halo.api import Halo

BLOCK, PROMPT = 16, 100


def opened(halo: Halo, model: Any, **options: Any) -> Any:
    return halo.inference.transformers_cache(model, **{"block_tokens": BLOCK, **options})


def greedy(model: Any, ids: list[int], count: int = 12) -> list[int]:
    """What the model writes without any of this."""
    import torch

    given = torch.tensor([ids])
    mask = torch.ones_like(given)
    output = model.generate(
        input_ids=given, attention_mask=mask, max_new_tokens=count, do_sample=False
    )
    found: list[int] = output[0].tolist()
    return found


def written(cache: Any, ids: list[int], count: int = 12, **options: Any) -> list[int]:
    output = cache.generate(ids, max_new_tokens=count, do_sample=False, **options)
    assert cache.flush(30)
    found: list[int] = output[0].tolist()
    return found


def one_weight(model: Any) -> Any:
    import torch

    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    return model
