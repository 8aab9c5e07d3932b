"""Layers of torch modules that are computed again: nothing changes but the memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import arc_halo
from arc_halo.errors import InvalidInputError
from arc_halo.integrations.recomputing import recompute, restore
from arc_halo.store import gradient_checkpoints, trainings
from arc_halo.store.connection import connect

pytestmark = pytest.mark.torch
Halo = arc_halo.Halo
TOKENS = (2, 32)
VOCABULARY = 64
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 32,
}
BOTH = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])


def model_of(config: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).train()


def loss_of(model: Any, **options: Any) -> Any:
    import torch

    tokens = torch.arange(TOKENS[0] * TOKENS[1]).reshape(TOKENS) % VOCABULARY
    return model(input_ids=tokens, labels=tokens, **options).loss


def trained(model: Any, steps: int = 3, **options: Any) -> tuple[list[str], dict[str, bytes]]:
    """The losses in hex, and the bits of the last gradients, after a few steps with dropout."""
    import torch

    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, **options)
        loss.backward()
        optimizer.step()
        losses.append(loss.item().hex())
    grads = {name: each.grad.numpy().tobytes() for name, each in model.named_parameters()}
    return losses, grads


def kept_bytes(model: Any) -> int:
    """What autograd keeps of a forward pass, parameters left out, each storage once.

    Layers that are computed again keep their inputs outside of it: these are counted by hooks.
    """
    import torch

    parameters = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    def keep_inputs(_: Any, args: tuple[Any, ...]) -> None:
        keep(args[0])

    layers = [
        each
        for each in model.modules()
        if type(each).__name__ in ("LlamaDecoderLayer", "GPT2Block")
    ]
    hooks = [layer.register_forward_pre_hook(keep_inputs) for layer in layers]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model)
    for hook in hooks:
        hook.remove()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@BOTH
@pytest.mark.parametrize("layers", ["all", {"every": 2}, [1, 3]])
def test_losses_and_gradients_are_the_same_to_the_bit(config: dict[str, Any], layers: Any) -> None:
    expected = trained(model_of(config))
    model = model_of(config)
    recompute(model, layers=layers)
    assert trained(model) == expected


@BOTH
def test_what_is_kept_shrinks_by_what_was_estimated_or_more(config: dict[str, Any]) -> None:
    whole = kept_bytes(model_of(config))
    for layers in ("all", {"every": 2}, [3]):
        model = model_of(config)
        planned = recompute(model, layers=layers)
        assert planned is not None
        per_sequence = planned.saved_bytes
        assert per_sequence is not None
        saved = whole - kept_bytes(model)
        assert 1.0 <= saved / (per_sequence * TOKENS[0]) < 3.0, layers


def test_half_precision_by_autocast_is_the_same_to_the_bit() -> None:
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = trained(model_of(GPT2))
        model = model_of(GPT2)
        recompute(model, layers="all")
        assert trained(model) == expected


def test_names_of_parameters_stay_and_the_module_can_be_copied() -> None:
    model = model_of(LLAMA)
    names = list(model.state_dict())
    recompute(model, layers="all")
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    assert twin.model.layers[0].forward._layer is twin.model.layers[0]
    assert trained(twin) == trained(model)


def test_a_module_without_gradients_answers_as_before() -> None:
    import torch

    model = model_of(LLAMA).eval()
    with torch.no_grad():
        expected = loss_of(model).item()
        recompute(model, layers="all")
        assert loss_of(model).item() == expected
        tokens = torch.ones((1, 4), dtype=torch.long)
        texts = model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert texts.shape == (1, 8)


def test_keys_are_not_kept_twice_where_a_cache_was_asked_for() -> None:
    expected = trained(model_of(LLAMA), use_cache=False)
    model = model_of(LLAMA)
    recompute(model, layers="all")
    assert trained(model, use_cache=True) == expected


def test_a_new_plan_takes_the_place_of_the_last_and_none_ends_it() -> None:
    model = model_of(LLAMA)
    whole = kept_bytes(model)
    recompute(model, layers="all")
    recompute(model, layers=[0])
    assert ["forward" in layer.__dict__ for layer in model.model.layers] == [True] + 3 * [False]
    assert recompute(model) is None
    assert kept_bytes(model) == whole


def test_a_forward_that_somebody_put_there_is_used_and_put_back() -> None:
    model = model_of(LLAMA)
    layer = model.model.layers[0]
    calls = []
    own = layer.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    layer.forward = counted
    recompute(model, layers="all")
    loss_of(model).backward()
    assert len(calls) == 2
    restore(model)
    assert layer.forward is counted


def test_modules_of_ones_own_and_wrapped_ones_are_found_by_name() -> None:
    import torch

    blocks = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(3)])
    planned = recompute(blocks_in := torch.nn.ModuleDict({"blocks": blocks}), layers=[2],
                        modules="blocks")  # fmt: skip
    assert planned is not None
    assert [each.module_name for each in planned.layers] == [f"blocks.{i}" for i in range(3)]
    assert planned.saved_bytes is None
    wrapped = torch.nn.ModuleDict({"module": blocks_in})
    again = recompute(wrapped, layers="all", modules="blocks")
    assert again is not None
    assert again.modules == "module.blocks"
    inner = model_of(LLAMA).model
    assert recompute(inner, layers="all").modules == "layers"  # type: ignore[union-attr]


def test_layers_that_are_not_there_are_told() -> None:
    model = model_of(LLAMA)
    with pytest.raises(InvalidInputError, match="no lists of layers 'blocks'"):
        recompute(model, layers="all", modules="blocks")
    with pytest.raises(InvalidInputError, match="there is no layer 4"):
        recompute(model, layers=[4])


def test_a_list_of_layers_named_alone_is_all_of_them_and_several_are_refused() -> None:
    model = model_of(LLAMA)
    planned = recompute(model, modules="model.layers")
    assert planned is not None
    assert planned.checkpointed_count == 4
    several: Any = ["model.layers"]
    with pytest.raises(InvalidInputError, match="name of the list"):
        recompute(model, modules=several)


@pytest.fixture
def halo(tmp_path: Path, database: str) -> Iterator[Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        opened.models.create_model(
            model_name="story", version="1", model_type="transformer", architecture_config=LLAMA
        )
        with connect(database) as conn:
            trainings.upsert(conn, [DECLARED])
        yield opened


DECLARED = {
    "name": "tuning",
    "model": "story@1",
    "config": {},
    "dataset": {},
    "tags": {},
    "logging": {"flush_seconds": 1.0, "heartbeat_seconds": 10.0, "spool_bytes": 65536},
    "gradient_checkpointing": {
        "layers": {"every": 2},
        "modules": None,
        "batch_size": 2,
        "sequence_length": 32,
        "dtype": "F32",
        "attention": "sdpa",
    },
}


def test_what_is_declared_is_applied_and_recorded_with_the_session(
    halo: Halo, database: str
) -> None:
    model = model_of(LLAMA)
    with halo.training.session(training="tuning") as run:
        planned = recompute(model, run)
        assert planned is not None
        assert ["forward" in layer.__dict__ for layer in model.model.layers] == 2 * [True, False]
        loss_of(model).backward()
    with connect(database) as conn:
        rows = gradient_checkpoints.of_session(conn, run.id)
    assert [row.is_checkpointed for row in rows] == 2 * [True, False]
    assert [row.module_name for row in rows] == [f"model.layers.{i}" for i in range(4)]
    assert sum(row.saved_bytes or 0 for row in rows) == planned.saved_bytes


def test_a_module_of_another_depth_than_the_model_is_refused(halo: Halo) -> None:
    model = model_of({**LLAMA, "num_hidden_layers": 3})
    with (
        halo.training.session(training="tuning") as run,
        pytest.raises(InvalidInputError, match="the module has 3 layers, the model 4"),
    ):
        recompute(model, run)
    assert not any("forward" in layer.__dict__ for layer in model.modules())


def test_without_a_declaration_a_session_changes_nothing(halo: Halo) -> None:
    model = model_of(LLAMA)
    with halo.training.session("story@1") as run:
        assert recompute(model, run) is None
