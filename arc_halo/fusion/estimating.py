"""What a merge will cost, worked out before it is paid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arc_halo.fusion.recipes import FusionRecipe
from arc_halo.fusion.tensor_recipes import TensorRecipe
from arc_halo.store import fused
from arc_halo.store.rows import Connection
from arc_halo.tensors import dtypes

SECONDS_PER_GIB = {"elements": 5.0, "rows": 5.0, "tensor": 100.0}
"""CPU seconds for each GiB read, by the strategy's parts, where nothing was measured yet."""

NAMED = 10
"""Tensors that are named of those to compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of the tensors of a merge those that have to be computed, and what for.

    `reused_bytes` are of tensors that are there already: computed before, or taken as they are.
    `written_bytes` is before encoding, and before equal chunks are shared. `cpu_seconds` goes by
    what the same strategy took in this database (`is_measured`), or by a rule of thumb. `named`
    are the first of those to compute, where others are there already.
    """

    tensors: int
    computed: int
    named: tuple[str, ...]
    read_bytes: int
    written_bytes: int
    reused_bytes: int
    cpu_seconds: float
    is_measured: bool


class Speeds:
    """What strategies took in this database so far; each is asked for once."""

    def __init__(self, conn: Connection | None) -> None:
        self._conn = conn
        self._known: dict[str, float | None] = {}

    def seconds_per_byte(self, strategy: str) -> float | None:
        """CPU seconds for each byte of the results; None where nothing was measured."""
        if self._conn is None:
            return None
        if strategy not in self._known:
            self._known[strategy] = fused.seconds_per_byte(self._conn, strategy)
        return self._known[strategy]


def estimate(
    conn: Connection | None,
    recipe: FusionRecipe,
    tensors: Sequence[TensorRecipe],
    speeds: Speeds,
) -> Estimate:
    """What these tensors of a merge will cost. Without a database nothing is there yet.

    A tensor whose inputs are not stored yet, or that depends on a survey, counts as one to be
    computed.
    """
    computed = [tensor for tensor in tensors if tensor.strategy is not None]
    keys = {
        tensor.name: tensor.key
        for tensor in computed
        if all(source.digest is not None for source in tensor.all_sources)
    }
    known = fused.known_keys(conn, list(keys.values())) if conn and keys else set()
    todo = [tensor for tensor in computed if keys.get(tensor.name) not in known]
    read_bytes = sum(_read_bytes(tensor) for tensor in todo)
    written_bytes = sum(tensor.size_bytes for tensor in todo)
    speed = speeds.seconds_per_byte(recipe.strategy.name) if todo else None
    rule = SECONDS_PER_GIB[recipe.strategy.part] * read_bytes / 2**30
    return Estimate(
        tensors=len(tensors),
        computed=len(todo),
        named=tuple(t.name for t in todo[:NAMED]) if len(todo) < len(computed) else (),
        read_bytes=read_bytes,
        written_bytes=written_bytes,
        reused_bytes=sum(tensor.size_bytes for tensor in tensors) - written_bytes,
        cpu_seconds=rule if speed is None else speed * written_bytes,
        is_measured=speed is not None,
    )


def _read_bytes(tensor: TensorRecipe) -> int:
    return sum(dtypes.size_bytes(source.dtype, tensor.shape) for source in tensor.sources)
