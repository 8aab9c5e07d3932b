"""The order of declarations: what others need comes first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from arc_halo.manifest.documents import KINDS, Declaration
from arc_halo.types import Key


def ordered(declarations: Mapping[Key, Declaration]) -> dict[Key, Declaration]:
    """The declarations by kind, by depth of dependency, by name. There must be no cycle."""
    graph = _graph(declarations)
    depth = _depths(graph, list(TopologicalSorter(graph).static_order()))
    rank = {kind: index for index, kind in enumerate(KINDS)}
    order = sorted(graph, key=lambda key: (rank[key.kind], depth[key], key.name))
    return {key: declarations[key] for key in order}


def cycles(declarations: Mapping[Key, Declaration]) -> Iterator[Sequence[Key]]:
    """Each cycle of resources that need one another, its first key at the end again."""
    graph = _graph(declarations)
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as exc:
            yield tuple(reversed(exc.args[1]))
            for key in exc.args[1]:
                graph.pop(key, None)
        else:
            return


def _graph(declarations: Mapping[Key, Declaration]) -> dict[Key, list[Key]]:
    return {
        key: [need for need in declaration.depends_on if need in declarations]
        for key, declaration in declarations.items()
    }


def _depths(graph: Mapping[Key, Sequence[Key]], order: Sequence[Key]) -> dict[Key, int]:
    depths: dict[Key, int] = {}
    for key in order:
        depths[key] = 1 + max((depths[need] for need in graph[key]), default=-1)
    return depths
