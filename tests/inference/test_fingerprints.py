"""Digests of the weights and adapters of torch modules."""

from __future__ import annotations

from typing import Any

import pytest

from arc_halo.errors import InvalidInputError
from arc_halo.inference import fingerprints
from arc_halo.inference.fingerprints import Fingerprint, adapter_state, weights_root
from arc_halo.tensors import digests

pytestmark = pytest.mark.torch


def module_of(dtype: str = "float32") -> Any:
    """Two tied matrices, one of its own, and a buffer that no file has."""
    import torch

    torch.manual_seed(3)
    module = torch.nn.Module()
    module.embedding = torch.nn.Embedding(8, 4)
    module.head = torch.nn.Linear(4, 8)
    module.head.weight = module.embedding.weight
    module.register_buffer("rope", torch.arange(4.0), persistent=False)
    return module.to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_root_is_that_of_the_raw_bytes_by_name(dtype: str) -> None:
    import torch

    module = module_of(dtype)
    names = {"float32": "F32", "bfloat16": "BF16", "float64": "F64"}
    tensors = {
        "embedding.weight": module.embedding.weight,
        "head.weight": module.head.weight,
        "head.bias": module.head.bias,
        "rope": module.rope,
    }
    assert weights_root(module) == digests.weights_root(
        (
            name,
            digests.tensor_digest(
                names[dtype],
                tensor.shape,
                tensor.detach().contiguous().view(torch.uint8).numpy().tobytes(),
            ),
        )
        for name, tensor in tensors.items()
    )


def test_views_of_one_memory_are_told_apart() -> None:
    import torch

    module = torch.nn.Module()
    module.a = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    module.b = torch.nn.Parameter(module.a.detach().reshape(3, 2))
    module.c = torch.nn.Parameter(module.a.detach().t())
    module.d = torch.nn.Parameter(torch.zeros(0, 3))
    copies = torch.nn.Module()
    for name, tensor in module.named_parameters():
        setattr(copies, name, torch.nn.Parameter(tensor.detach().clone().contiguous()))
    assert weights_root(module) == weights_root(copies)


def test_a_tensor_without_values_is_refused() -> None:
    import torch

    with pytest.raises(InvalidInputError, match="cannot be stored"):
        weights_root(torch.nn.Linear(2, 2, device="meta"))


def changes() -> dict[str, Any]:
    import torch

    def in_place(module: Any) -> None:
        with torch.no_grad():
            module.head.bias[0] += 1

    def replaced(module: Any) -> None:
        module.head.bias = torch.nn.Parameter(module.head.bias.detach() + 1)

    def other_data(module: Any) -> None:
        module.head.bias.data = module.head.bias.detach() + 1

    def loaded(module: Any) -> None:
        module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()})

    def optimized(module: Any) -> None:
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        module.head(module.embedding(torch.tensor([1]))).sum().backward()
        optimizer.step()

    def untied(module: Any) -> None:
        module.head.weight = torch.nn.Parameter(module.head.weight.detach() + 1)

    def cast(module: Any) -> None:
        module.to(torch.float16)

    def buffer(module: Any) -> None:
        module.rope.mul_(2)

    def more(module: Any) -> None:
        module.more = torch.nn.Linear(1, 1)

    found = [in_place, replaced, other_data, loaded, optimized, untied, cast, buffer, more]
    return {each.__name__: each for each in found}


CHANGES = ["in_place", "replaced", "other_data", "loaded", "optimized", "untied", "cast", "buffer",
           "more"]  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_weights_is_noticed(name: str) -> None:
    module = module_of()
    fingerprint = Fingerprint(module)
    before = fingerprint.digest()
    changes()[name](module)
    assert fingerprint.digest() == weights_root(module) != before


def test_a_tensor_at_the_address_of_one_that_went_is_another() -> None:
    import torch

    module = torch.nn.Linear(64, 64)
    fingerprint = Fingerprint(module)
    for value in range(50):
        module.weight = torch.nn.Parameter(torch.full((64, 64), float(value)))
        assert fingerprint.digest() == weights_root(module)
        # What is freed here is likely to be what the next one gets.
        module.weight = torch.nn.Parameter(torch.full((64, 64), -1.0))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows with every root that is computed."""
    calls: list[Any] = []
    compute = fingerprints.module_weights

    def count(module: Any) -> Any:
        calls.append(module)
        return compute(module)

    monkeypatch.setattr(fingerprints, "module_weights", count)
    return calls


def test_nothing_is_computed_where_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    calls = counted(monkeypatch)
    module = module_of()
    fingerprint = Fingerprint(module)
    first = fingerprint.digest()
    module.head(module.embedding(torch.tensor([1])))
    assert fingerprint.digest() == first
    assert len(calls) == 1


def test_a_write_that_torch_does_not_count_needs_a_refresh() -> None:
    module = module_of()
    fingerprint = Fingerprint(module)
    before = fingerprint.digest()
    module.head.bias.data[0] += 1
    assert fingerprint.digest() == before
    assert fingerprint.refresh() == fingerprint.digest() == weights_root(module) != before


def test_tensors_that_count_no_writes_are_read_every_time() -> None:
    import torch

    with torch.inference_mode():
        module = module_of()
        fingerprint = Fingerprint(module)
        before = fingerprint.digest()
        module.head.bias[0] += 1
        assert fingerprint.digest() != before


def adapted(**state: Any) -> Any:
    """A module with a layer that says of itself what those of peft do."""
    import torch

    module = module_of()
    layer = torch.nn.Linear(2, 2)
    usual = {"active_adapters": ["a"], "disable_adapters": False, "merged_adapters": [],
             "scaling": {"a": 1.0}}  # fmt: skip
    for name, value in {**usual, **state}.items():
        setattr(layer, name, value)
    module.layer = layer
    return module


def test_a_module_without_adapters_has_no_state_of_them() -> None:
    module = module_of()
    module.head.scaling = 0.5  # attention layers call theirs so
    assert adapter_state(module) == b""


def test_every_state_of_adapters_is_another() -> None:
    states = [
        adapter_state(module)
        for module in (
            adapted(),
            adapted(active_adapters=["b"]),
            adapted(active_adapters=["a", "b"]),
            adapted(active_adapters=["b", "a"]),
            adapted(disable_adapters=True),
            adapted(merged_adapters=["a"]),
            adapted(scaling={"a": 2.0}),
        )
    ]
    assert len(set(states)) == len(states)
    assert all(len(state) == 32 for state in states)
    assert adapter_state(adapted()) == states[0]


def test_weights_are_read_again_after_a_merge() -> None:
    module = adapted()
    fingerprint = Fingerprint(module)
    before = fingerprint.digest()
    module.layer.merged_adapters = ["a"]
    module.layer.weight.data += 1  # as peft merges
    assert fingerprint.digest() == weights_root(module) != before
