"""Layers, as the names of tensors tell them: `model.layers.12.mlp.weight` is of layer 12."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FIRST_WORDS = ("embed", "wte", "wpe")
"""What names of tensors before the layers have in them."""


@dataclass(frozen=True, slots=True)
class Layered:
    """A tensor of a layer: the name of the stack, the layer's number in it, and the rest."""

    stack: str
    index: int
    rest: str

    def at(self, index: int) -> str:
        """The name of this tensor in another layer."""
        return ".".join(part for part in (self.stack, str(index), self.rest) if part)


def layered(name: str) -> Layered | None:
    """The layer of a tensor: the first part of its name that is a number; None without one."""
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isascii() and part.isdigit() and str(int(part)) == part:
            return Layered(".".join(parts[:place]), int(part), ".".join(parts[place + 1 :]))
    return None


def stacks(names: Iterable[str]) -> dict[str, int]:
    """How many layers each stack has."""
    counts: dict[str, int] = {}
    for name in names:
        found = layered(name)
        if found is not None:
            counts[found.stack] = max(counts.get(found.stack, 0), found.index + 1)
    return counts


def is_before_layers(name: str) -> bool:
    """Whether a tensor that is of no layer is an embedding, and not what follows the layers."""
    return any(word in name for word in FIRST_WORDS)


def position(index: int, count: int) -> float:
    """Where a layer stands, from 0 for the first to 1 for the last; the only one is the last."""
    return index / (count - 1) if count > 1 else 1.0
