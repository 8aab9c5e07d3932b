"""A model in several files and an index, named and laid out as the Hugging Face libraries do."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from arc_halo.types import TensorInfo

INDEX_SUFFIX = ".index.json"


def split(tensors: Sequence[TensorInfo], max_shard_bytes: int) -> list[list[TensorInfo]]:
    """The tensors in their order, in shards of at most `max_shard_bytes` of data.

    A tensor larger than that gets a shard of its own. There is one shard at least.
    """
    shards: list[list[TensorInfo]] = [[]]
    size_bytes = 0
    for tensor in tensors:
        if shards[-1] and size_bytes + tensor.size_bytes > max_shard_bytes:
            shards.append([])
            size_bytes = 0
        shards[-1].append(tensor)
        size_bytes += tensor.size_bytes
    return shards


def shard_paths(path: Path, count: int) -> list[Path]:
    """`model-00001-of-00003.safetensors` and so on for `model.safetensors`."""
    return [
        path.with_name(f"{path.stem}-{number:05}-of-{count:05}{path.suffix}")
        for number in range(1, count + 1)
    ]


def index_path(path: Path) -> Path:
    """The index beside the shards of `path`."""
    return path.with_name(path.name + INDEX_SUFFIX)


def index_text(shards: Sequence[tuple[str, Sequence[TensorInfo]]]) -> str:
    """The index of shards, each a file name with its tensors."""
    total_size = sum(tensor.size_bytes for _, tensors in shards for tensor in tensors)
    weight_map = {tensor.name: name for name, tensors in shards for tensor in tensors}
    document = {
        "metadata": {"total_size": total_size},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def files_of(path: Path) -> list[Path]:
    """What is there of a model at `path`, in one file or sharded: file, index, shards."""
    pattern = re.compile(
        rf"{re.escape(path.stem)}-\d{{5,}}-of-\d{{5,}}{re.escape(path.suffix)}", re.ASCII
    )
    whole = {path.name, index_path(path).name}
    try:
        names = sorted(each.name for each in path.parent.iterdir())
    except FileNotFoundError:
        return []
    return [path.with_name(n) for n in names if n in whole or pattern.fullmatch(n)]
