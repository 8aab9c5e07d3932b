"""What Lightning saves and loads, as what a checkpoint has, and back."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arc_halo.integrations._configs import as_config
from arc_halo.tensors import dtypes
from arc_halo.tensors.torch_tensors import as_torch

if TYPE_CHECKING:
    from arc_halo.store.checkpoints import Checkpoint
    from arc_halo.training.checkpoints.loading import Contents

HYPERPARAMETERS = {"hyper_parameters", "datamodule_hyper_parameters"}
"""Under which names Lightning saves them."""


def checkpoint_of(contents: Contents, point: Checkpoint) -> dict[str, Any]:
    """What Lightning saved, as it was; of a `weights_only` checkpoint what it needs of that."""
    rest = contents.state("model") if "model" in contents.leaves else {}
    tensors = {
        name: as_torch(array, dtypes.name_of(array.dtype))
        for name, array in contents.weights.items()
    }
    found: dict[str, Any] = {
        "global_step": point.step,
        "epoch": int(point.epoch or 0),
        "pytorch-lightning_version": version("lightning"),
    }
    if "extra" in contents.leaves:
        found = contents.state("extra")
    for part, name in (("optimizer", "optimizer_states"), ("scheduler", "lr_schedulers")):
        if part in contents.leaves:
            found[name] = contents.state(part)
    return found | {"state_dict": {**rest.get("values", {}), **tensors}}


def without_secrets(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What Lightning saves beside tensors, its hyperparameters as a config is kept."""
    kept = {name: value for name, value in checkpoint.items() if name != "hparams_type"}
    for name in HYPERPARAMETERS & kept.keys():
        kept[name] = as_config(kept[name])
    return kept


def monitored(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """What the callbacks that decide on checkpoints have measured."""
    return {
        state["monitor"]: float(state["current_score"])
        for state in checkpoint.get("callbacks", {}).values()
        if isinstance(state, Mapping) and state.get("monitor")
        if state.get("current_score") is not None
    }


def files_of(checkpoint: Mapping[str, Any]) -> set[Path]:
    """The files that callbacks know of."""
    states = [each for each in checkpoint.get("callbacks", {}).values() if isinstance(each, dict)]
    known = {path for state in states for path in state.get("best_k_models", {})}
    known |= {
        state.get(name) for state in states for name in ("best_model_path", "last_model_path")
    }
    return {Path(path) for path in known if path}
