"""Random generators: where each stands, and standing there again.

Python's, numpy's and, where torch is in use, torch's of the process; and those that are named.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from typing import Any

from arc_halo.errors import CheckpointError

Generators = Mapping[str, Any]
"""Generators of numpy (`Generator`, `RandomState`), torch and Python (`Random`) by name."""


def capture(named: Generators | None = None) -> dict[str, Any]:
    """Where the generators of the process stand, and those of `named`, as a plain state."""
    import numpy as np

    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "named": {name: _state_of(name, each) for name, each in (named or {}).items()},
    }
    if (torch := sys.modules.get("torch")) is not None:
        state["torch"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def check(state: Mapping[str, Any], named: Generators | None = None) -> None:
    """Raise `CheckpointError` where `restore` could not put every generator where it stood."""
    torch = sys.modules.get("torch")
    if "torch" in state and torch is None:
        raise CheckpointError(
            "the checkpoint has the state of torch's generator, and torch is not in use here",
            hint="import torch first, or restore with rng=False",
        )
    if "cuda" in state and (torch is None or torch.cuda.device_count() != len(state["cuda"])):
        there = 0 if torch is None else torch.cuda.device_count()
        raise CheckpointError(
            f"the checkpoint has generators of {len(state['cuda'])} CUDA devices, here are {there}",
            hint="resume on as many devices, or restore with rng=False: results will differ",
        )
    for name, each in (named or {}).items():
        if name not in state["named"]:
            known = ", ".join(map(repr, state["named"])) or "none"
            raise CheckpointError(f"the checkpoint has no generator {name!r}; it has {known}")
        if (kind := _kind_of(name, each)) != state["named"][name]["kind"]:
            was = state["named"][name]["kind"]
            raise CheckpointError(f"the generator {name!r} is a {kind}, in the checkpoint a {was}")


def restore(state: Mapping[str, Any], named: Generators | None = None) -> None:
    """Put the generators of the process, and those of `named`, where they stood."""
    import numpy as np

    check(state, named)
    for name, each in (named or {}).items():
        kept = state["named"][name]
        _SETTERS[kept["kind"]](each, kept["state"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if "torch" in state:
        sys.modules["torch"].set_rng_state(state["torch"])
    if "cuda" in state:
        sys.modules["torch"].cuda.set_rng_state_all(state["cuda"])


def _state_of(name: str, generator: Any) -> dict[str, Any]:
    kind = _kind_of(name, generator)
    try:
        return {"kind": kind, "state": _GETTERS[kind](generator)}
    except NotImplementedError as exc:
        raise CheckpointError(f"the generator {name!r} has no state to keep") from exc


def _kind_of(name: str, generator: Any) -> str:
    import numpy as np

    torch = sys.modules.get("torch")
    if isinstance(generator, np.random.Generator):
        return "numpy.Generator"
    if isinstance(generator, np.random.RandomState):
        return "numpy.RandomState"
    if isinstance(generator, random.Random):
        return "random.Random"
    if torch is not None and isinstance(generator, torch.Generator):
        return "torch.Generator"
    raise CheckpointError(
        f"{name!r} is no random generator, but a {type(generator).__qualname__}",
        hint="give a Generator of numpy or torch, a RandomState, or a random.Random",
    )


def _set_bit_generator(generator: Any, state: Any) -> None:
    generator.bit_generator.state = state


_GETTERS: Mapping[str, Callable[[Any], Any]] = {
    "numpy.Generator": lambda generator: generator.bit_generator.state,
    "numpy.RandomState": lambda generator: generator.get_state(legacy=False),
    "random.Random": lambda generator: generator.getstate(),
    "torch.Generator": lambda generator: generator.get_state(),
}
_SETTERS: Mapping[str, Callable[[Any, Any], None]] = {
    "numpy.Generator": _set_bit_generator,
    "numpy.RandomState": lambda generator, state: generator.set_state(state),
    "random.Random": lambda generator, state: generator.setstate(state),
    "torch.Generator": lambda generator, state: generator.set_state(state),
}
