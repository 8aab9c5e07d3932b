"""Models of the tests' own as a runner finds them: a config, and tensors one after another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  safetensors asks numpy for bfloat16 by name
from safetensors import safe_open

from arc_halo.tensors import dtypes
from arc_halo.types import RunnerContext, TensorInfo


def context_of(directory: Path, **changes: Any) -> RunnerContext:
    """The context of a model whose files stand in a directory."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"nobody asks for {name}")

    given: dict[str, Any] = {
        "model": f"{directory.name}@1.0.0",
        "architecture": json.loads((directory / "config.json").read_text()),
        "find_file": refuse,
        "secret": refuse,
        "check_url": refuse,
        "predictors": {},
        "tensors": lambda: tensors_of(directory),
    }
    return RunnerContext(**{**given, **changes})


def tensors_of(directory: Path) -> Iterator[tuple[TensorInfo, Any]]:
    with safe_open(directory / "model.safetensors", framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  it is no dict
            array = file.get_tensor(name).copy()
            info = TensorInfo(
                name=name,
                dtype=dtypes.name_of(array.dtype),
                shape=array.shape,
                size_bytes=array.nbytes,
            )
            yield info, array
