"""The order of declarations: what others need comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from arc_halo.manifest.documents import KINDS, Declaration
from arc_halo.types import Key


class DependencyCycleError(Exception):
    """Resources that need one another; `keys` goes round, the first at the end again."""

    def __init__(self, keys: Sequence[Key]) -> None:
        super().__init__(" -> ".join(map(str, keys)))
        self.keys = tuple(keys)


def ordered(declarations: Mapping[Key, Declaration]) -> dict[Key, Declaration]:
    """The declarations by kind, by depth of dependency, by name.

    Raises `DependencyCycleError`.
    """
    graph = {
        key: [need for need in declaration.depends_on if need in declarations]
        for key, declaration in declarations.items()
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as exc:
        raise DependencyCycleError(list(reversed(exc.args[1]))) from exc
    depth = _depths(graph, order)
    rank = {kind: index for index, kind in enumerate(KINDS)}
    order.sort(key=lambda key: (rank[key.kind], depth[key], key.name))
    return {key: declarations[key] for key in order}


def _depths(graph: Mapping[Key, Sequence[Key]], order: Sequence[Key]) -> dict[Key, int]:
    depths: dict[Key, int] = {}
    for key in order:
        depths[key] = 1 + max((depths[need] for need in graph[key]), default=-1)
    return depths
