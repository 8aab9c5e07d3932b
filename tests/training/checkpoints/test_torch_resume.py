"""Training with torch, interrupted and gone on with, does what it would have done."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from arc_halo.errors import ArcHaloError, CheckpointError

pytestmark = pytest.mark.torch

TRAIN = """
import json, random, sys
import numpy as np
import torch
from torch import nn
import arc_halo

torch.set_num_threads(1)
url, directory, name, first, last = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
for seed in (torch.manual_seed, np.random.seed, random.seed):
    seed(first)
model = nn.Sequential(
    nn.Linear(32, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, 1)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, amsgrad=True)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
order = torch.Generator().manual_seed(first)
position = {}
losses = []
with arc_halo.connect(url, project=directory) as halo:
    with halo.training.session("story@1", name=name, resume="allow") as run:
        if run.has_checkpoint:
            run.restore(
                model=model, optimizer=optimizer, scheduler=scheduler, data=position,
                named_generators={"order": order},
            )
            assert position["step"] == first, position
        for step in range(first, last):
            x = torch.randn(16, 32, generator=order) + random.random() + np.random.rand()
            loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item().hex())
            run.log({"loss": loss}, step=step)
            if step % 5 == 4:
                run.checkpoint(
                    step=step, model=model, optimizer=optimizer, scheduler=scheduler,
                    data={"step": step + 1}, named_generators={"order": order}, async_=True,
                )
        run.pause()
weights = {name: each.numpy().tobytes().hex() for name, each in model.state_dict().items()}
print(json.dumps([losses, weights]))
"""


@pytest.fixture
def train(database, tmp_path):
    """Trains the steps from `first` to `last` in a process of its own; losses and weights."""

    def trained(name, first, last):
        given = map(str, [database, tmp_path, name, first, last])
        ended = subprocess.run(
            [sys.executable, "-c", TRAIN, *given],
            timeout=300,
            check=False,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    return trained


def test_twenty_steps_and_twenty_in_two_processes_are_forty_in_one(train, sql):
    losses, weights = train("whole", 0, 40)
    first, _ = train("halves", 0, 20)
    second, resumed = train("halves", 20, 40)
    assert first + second == losses
    assert resumed == weights
    assert len(set(losses)) == 40
    roots = "SELECT count(DISTINCT root), count(*) FROM model_checkpoints GROUP BY step"
    assert sql(roots) == [(1, 2)] * 8


def steps(model, optimizer, count):
    import torch

    for _ in range(count):
        x = torch.randn(8, 6, dtype=next(model.parameters()).dtype)
        loss = (model(x) ** 2).mean() + x.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


OPTIMIZERS = {
    "adam": lambda torch, p: torch.optim.Adam(p),
    "adamw_amsgrad": lambda torch, p: torch.optim.AdamW(p, amsgrad=True, maximize=True),
    "sgd": lambda torch, p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd_plain": lambda torch, p: torch.optim.SGD(p, lr=0.1),
    "rmsprop": lambda torch, p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "adagrad": lambda torch, p: torch.optim.Adagrad(p),
    "adadelta": lambda torch, p: torch.optim.Adadelta(p),
    "nadam": lambda torch, p: torch.optim.NAdam(p),
    "radam": lambda torch, p: torch.optim.RAdam(p),
    "adamax": lambda torch, p: torch.optim.Adamax(p),
    "rprop": lambda torch, p: torch.optim.Rprop(p),
    "asgd": lambda torch, p: torch.optim.ASGD(p),
}


def of_torch(optimizer="adam", dtype="float32"):
    import torch

    model = torch.nn.Linear(6, 3, dtype=getattr(torch, dtype))
    return model, OPTIMIZERS[optimizer](torch, model.parameters())


def same(one, other):
    """Equal in type and bits, tensors too."""
    import torch

    if isinstance(one, torch.Tensor):
        # By their bits: NaN is what it was, too.
        sides = [each.detach().flatten().view(torch.uint8) for each in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*sides)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_as_if_it_was_never_interrupted(checkpoints, name):
    model, optimizer = of_torch(name)
    steps(model, optimizer, 3)
    checkpoints.save(step=3, model=model, optimizer=optimizer)
    steps(model, optimizer, 3)
    fresh, resumed = of_torch(name)
    checkpoints.restore(model=fresh, optimizer=resumed)
    steps(fresh, resumed, 3)
    assert same(fresh.state_dict(), model.state_dict())
    assert same(resumed.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_half_and_double_weights_go_on(checkpoints, dtype):
    model, optimizer = of_torch("adamw_amsgrad", dtype)
    steps(model, optimizer, 3)
    checkpoints.save(step=3, model=model, optimizer=optimizer)
    steps(model, optimizer, 3)
    fresh, resumed = of_torch("adamw_amsgrad", dtype)
    checkpoints.restore(model=fresh, optimizer=resumed)
    steps(fresh, resumed, 3)
    assert same(fresh.state_dict(), model.state_dict())


def test_an_optimizer_that_rounds_what_it_loads_is_told(checkpoints):
    """Moments in float32 of weights in bfloat16, as some libraries keep them."""
    import torch

    model, optimizer = of_torch("adam", "bfloat16")
    steps(model, optimizer, 1)
    for state in optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].float() + 1e-6
    checkpoints.save(step=1, model=model, optimizer=optimizer)
    fresh, resumed = of_torch("adam", "bfloat16")
    with pytest.raises(CheckpointError, match=r"was torch\.float32, and was taken as torch\.bf"):
        checkpoints.restore(model=fresh, optimizer=resumed)
    assert torch.is_tensor(optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_scaler_a_schedule_and_several_modules_come_back(checkpoints):
    import torch

    parts = torch.nn.ModuleDict({"g": torch.nn.Linear(2, 2), "d": torch.nn.BatchNorm1d(3)})
    optimizer = torch.optim.SGD(parts.parameters(), lr=0.1)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=9),
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    optimizer.step()
    schedules[0].step()
    parts["d"](torch.randn(4, 3))
    model = {"g": parts["g"], "d": parts["d"]}
    checkpoints.save(step=1, model=model, optimizer=optimizer, scheduler=schedules, scaler=scaler)
    before = [each.state_dict() for each in (*model.values(), *schedules, scaler)]
    fresh = {"g": torch.nn.Linear(2, 2), "d": torch.nn.BatchNorm1d(3)}
    other = torch.optim.SGD([*fresh["g"].parameters(), *fresh["d"].parameters()], lr=0.5)
    again = [
        torch.optim.lr_scheduler.OneCycleLR(other, 2.0, total_steps=9),
        torch.optim.lr_scheduler.ReduceLROnPlateau(other),
    ]
    unscaled = torch.amp.GradScaler("cpu")
    checkpoints.restore(model=fresh, optimizer=other, scheduler=again, scaler=unscaled)
    after = [each.state_dict() for each in (*fresh.values(), *again, unscaled)]
    assert same([dict(each) for each in after], [dict(each) for each in before])
    assert int(fresh["d"].num_batches_tracked) == 1


def test_a_module_in_training_may_change_after_an_async_save(checkpoints):
    model, optimizer = of_torch()
    steps(model, optimizer, 2)
    expected = {name: each.clone() for name, each in model.state_dict().items()}
    moments = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    pending = checkpoints.save(step=1, model=model, optimizer=optimizer, async_=True)
    steps(model, optimizer, 5)
    pending.result(60)
    fresh, resumed = of_torch()
    checkpoints.restore(model=fresh, optimizer=resumed)
    assert same(dict(fresh.state_dict()), expected)
    assert same(resumed.state_dict()["state"][0]["exp_avg"], moments)


def test_tied_weights_stay_tied_and_are_kept_once(checkpoints, sql):
    import torch

    def tied():
        model = torch.nn.ModuleDict({"a": torch.nn.Linear(300, 300, bias=False)})
        model["b"] = torch.nn.Linear(300, 300, bias=False)
        model["b"].weight = model["a"].weight
        return model

    model = tied()
    checkpoints.save(step=1, model=model, rng=False)
    assert sql("SELECT count(*) FROM tensor_metadata") == [(1,)]
    fresh = tied()
    checkpoints.restore(model=fresh, rng=False)
    assert fresh["a"].weight is fresh["b"].weight
    assert torch.equal(fresh["a"].weight, model["a"].weight)


def test_all_three_generators_go_on_and_a_program_without_torch_is_told(checkpoints, monkeypatch):
    import torch

    model, _ = of_torch()
    checkpoints.save(step=1, model=model)
    expected = torch.rand(3).tolist(), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    checkpoints.restore(model=of_torch()[0])
    assert (torch.rand(3).tolist(), np.random.rand(), random.random()) == expected
    monkeypatch.setitem(sys.modules, "torch", None)
    arrays = {"weight": np.zeros((3, 6), "f4"), "bias": np.zeros(3, "f4")}
    with pytest.raises(ArcHaloError, match="torch is not installed"):
        checkpoints.restore(model=arrays)
    assert not arrays["weight"].any()
    checkpoints.restore(model=arrays, rng=False)
    assert arrays["weight"].any()


def test_a_torch_model_is_read_as_arrays_and_back(checkpoints):
    model, _ = of_torch()
    checkpoints.save(step=1, model=model, rng=False)
    arrays = {"weight": np.zeros((3, 6), "f4"), "bias": np.zeros(3, "f4")}
    checkpoints.restore(model=arrays, rng=False)
    assert (arrays["weight"] == model.weight.detach().numpy()).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_that_is_compiled_or_parallel_is_the_module_itself(checkpoints):
    import torch

    model, _ = of_torch()
    weights = model.weight.detach().numpy().copy()
    for step, around in enumerate((torch.compile, torch.nn.DataParallel)):
        checkpoints.save(step=step, model=around(model), rng=False)
        for fresh in (model, torch.nn.DataParallel(model), torch.compile(model)):
            model.weight.data.zero_()
            checkpoints.restore(step, model=fresh, rng=False)
            assert (model.weight.detach().numpy() == weights).all()
    checkpoints.save(step=2, model={"one": torch.compile(model)}, rng=False)
    model.weight.data.zero_()
    checkpoints.restore(2, model={"one": model}, rng=False)
    assert (model.weight.detach().numpy() == weights).all()


@pytest.mark.parametrize("what", ["sparse", "meta", "subclass"])
def test_a_tensor_whose_values_are_not_plainly_there_is_refused(checkpoints, what):
    import torch

    class Own(torch.Tensor):
        pass

    tensor = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "meta": lambda: torch.empty(3, device="meta"),
        "subclass": lambda: torch.zeros(3).as_subclass(Own),
    }[what]()
    with pytest.raises(CheckpointError, match="'w'"):
        checkpoints.save(step=1, model={"w": tensor})
    with pytest.raises(CheckpointError, match=r"optimizer: \['x'\]"):
        checkpoints.save(step=1, model={"w": np.zeros(2)}, optimizer={"x": tensor})
