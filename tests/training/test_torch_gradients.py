"""Gradients of torch modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import arc_halo
from arc_halo.training.gradients import read

pytestmark = pytest.mark.torch


def module_of(dtype: str = "float32") -> Any:
    """Three weights: one with a gradient, one that is frozen, one that was not used."""
    import torch

    torch.manual_seed(3)
    module = torch.nn.ModuleDict(
        {name: torch.nn.Linear(4, 4, bias=False) for name in ("used", "frozen", "idle")}
    ).to(getattr(torch, dtype))
    module["frozen"].weight.requires_grad_(False)
    x = torch.ones((2, 4), dtype=getattr(torch, dtype))
    (module["used"](module["frozen"](x)) ** 2).sum().backward()
    return module


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_norms_are_those_of_the_values(dtype: str) -> None:
    module = module_of(dtype)
    used, frozen, idle = read(module)
    values = module["used"].weight.grad.double().numpy()
    assert used.norm == pytest.approx(float(np.linalg.norm(values)))
    assert used.array().astype(np.float64).tolist() == values.tolist()
    assert [each.name for each in (used, frozen, idle)] == [
        "used.weight",
        "frozen.weight",
        "idle.weight",
    ]
    assert [each.requires_grad for each in (used, frozen, idle)] == [True, False, True]
    assert (frozen.norm, idle.norm) == (None, None)


def test_sparse_and_complex_gradients_are_read_too() -> None:
    import torch

    table = torch.nn.Embedding(8, 2, sparse=True)
    table(torch.tensor([1, 1, 5])).sum().backward()
    (found,) = read(table)
    assert found.norm == pytest.approx(np.sqrt(2 * 4 + 2))
    assert found.array().tolist() == table.weight.grad.to_dense().tolist()
    (plain,) = read({"a": torch.tensor([3 + 4j, 0])})
    assert plain.norm == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_and_compilers_change_no_names() -> None:
    import torch

    module = module_of()
    names = [each.name for each in read(module)]
    assert [each.name for each in read(torch.nn.DataParallel(module))] == names
    assert [each.name for each in read(torch.compile(module))] == names


def test_a_module_is_recorded_with_the_weights_it_was_made_of(
    tmp_path: Path, database: str
) -> None:
    module = module_of()
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    with arc_halo.connect(database, project=tmp_path) as halo:
        model = halo.models.create_model(
            model_name="story", version="1", model_type="other", architecture_config={}
        )
        halo.tensors.write(model, state)
        with halo.training.session("story@1") as run:
            run.record_gradients(module, step=3, tensors=True)
    with psycopg.connect(database) as conn:
        rows = conn.execute(
            "SELECT tensor_name, requires_grad, gradient_norm IS NOT NULL,"
            " gradient_tensor_id IS NOT NULL FROM model_weights ORDER BY 1"
        ).fetchall()
    assert rows == [
        ("frozen.weight", False, False, False),
        ("idle.weight", True, False, False),
        ("used.weight", True, True, True),
    ]
