"""Adapters of peft, switched, scaled and merged: what was computed with another is never there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import arc_halo
from arc_halo.api import Halo
from arc_halo.errors import InvalidInputError
from tests.inference import torch_models as models

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`"),  # which peft still asks
]
PROMPT, STORED = 100, 96


@pytest.fixture
def halo(tmp_path: Path, database: str) -> Iterator[Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        yield opened


def lora() -> Any:
    """A LoRA config whose matrices do something from the start."""
    from peft import LoraConfig  # pyright: ignore[reportMissingImports]

    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def adapted(seed: int = 1) -> Any:
    """A Llama with two adapters, of which `poet` is at work."""
    import torch
    from peft import get_peft_model  # pyright: ignore[reportMissingImports]

    llama = models.tiny("llama")
    torch.manual_seed(seed)
    model = get_peft_model(llama, lora(), adapter_name="poet")
    model.add_adapter("clerk", lora())
    return model.eval()


def written(cache: Any, ids: list[int]) -> list[int]:
    output = cache.generate(ids, max_new_tokens=8, do_sample=False)
    assert cache.flush(30)
    found: list[int] = output[0].tolist()
    return found


def greedy(model: Any, ids: list[int]) -> list[int]:
    import torch

    given = torch.tensor([ids])
    output = model.generate(
        input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=8, do_sample=False
    )
    found: list[int] = output[0].tolist()
    return found


def test_each_adapter_has_prompts_of_its_own(halo: Halo) -> None:
    model, ids = adapted(), models.tokens(PROMPT)
    with halo.inference.transformers_cache(model, block_tokens=16) as cache:
        answers = {}
        for known in (0, STORED):
            for name in ("poet", "clerk"):
                model.set_adapter(name)
                assert (written(cache, ids), cache.cached_tokens) == (greedy(model, ids), known)
                answers[name] = greedy(model, ids)
            with model.disable_adapter():
                assert (written(cache, ids), cache.cached_tokens) == (greedy(model, ids), known)
                answers["none"] = greedy(model, ids)
    assert len({tuple(answer) for answer in answers.values()}) == 3


def test_another_process_with_the_same_adapter_finds_them(halo: Halo) -> None:
    ids = models.tokens(PROMPT)
    with halo.inference.transformers_cache(adapted(), block_tokens=16) as cache:
        written(cache, ids)
    with halo.inference.transformers_cache(adapted(), block_tokens=16) as cache:
        assert cache.prefix(ids)[1] == STORED
    with halo.inference.transformers_cache(adapted(seed=5), block_tokens=16) as cache:
        assert cache.prefix(ids)[1] == 0


def test_an_adapter_that_is_scaled_merged_or_taken_off_is_another(halo: Halo) -> None:
    model, ids = adapted(), models.tokens(PROMPT)
    layers = [part for part in model.modules() if hasattr(part, "set_scale")]
    with halo.inference.transformers_cache(model, block_tokens=16) as cache:
        written(cache, ids)
        for layer in layers:
            layer.set_scale("poet", 0.5)
        assert (written(cache, ids), cache.cached_tokens) == (greedy(model, ids), 0)
        model.merge_adapter()
        assert (written(cache, ids), cache.cached_tokens) == (greedy(model, ids), 0)
        # What is taken out again leaves other bits in the weights than were there.
        model.unmerge_adapter()
        assert written(cache, ids) == greedy(model, ids)
        plain = model.unload()
    with halo.inference.transformers_cache(plain, block_tokens=16) as cache:
        assert (written(cache, ids), cache.cached_tokens) == (greedy(plain, ids), 0)


def test_prompts_of_their_own_are_refused(halo: Halo) -> None:
    from peft import PromptTuningConfig, get_peft_model  # pyright: ignore[reportMissingImports]

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(models.tiny("llama"), config).eval()
    with pytest.raises(InvalidInputError, match="puts tokens of its own before the prompt"):
        halo.inference.transformers_cache(model)
