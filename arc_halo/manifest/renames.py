"""Names that resources had before: each is given up, and by one resource alone."""

from __future__ import annotations

from collections.abc import Mapping

from arc_halo.manifest.collect import Names
from arc_halo.manifest.documents import MODEL, REACTOR, STRATEGY, TRAINING, Lifecycle
from arc_halo.manifest.problems import Found, Problems
from arc_halo.types import Key


def old_key(key: Key, lifecycle: Lifecycle) -> Key | None:
    """What a resource used to be called, if its declaration says."""
    name = lifecycle.renamed_from
    return None if name is None else _key_before(key, name)


def check_renames(names: Names, problems: Problems) -> None:
    """Tell of names that are declared still, and of two resources that used to be the same."""
    for kind, declared in (
        (STRATEGY, names.strategies),
        (MODEL, names.models),
        (REACTOR, names.reactors),
        (TRAINING, names.trainings),
    ):
        _check_kind(kind, declared, problems)


def _check_kind(kind: str, declared: Mapping[str, Found], problems: Problems) -> None:
    taken: dict[str, Found] = {}
    for found in declared.values():
        if (name := found.data.get("renamed_from")) is None:
            continue
        old = _key_before(Key(kind=kind, name=found.name), name).name
        if old in declared:
            message = f"{kind}/{old} is declared still, so that nothing is renamed from it"
            hint = "if it was renamed long ago, take `renamed_from` out; else declare it no more"
        elif old in taken:
            message = f"{kind}/{taken[old].name} is renamed from {old} too"
            hint = "leave `renamed_from` to the one that it became"
        else:
            taken[old] = found
            continue
        problems.add(found, ("renamed_from",), "AH013", message, hint)


def _key_before(key: Key, name: str) -> Key:
    if key.kind == MODEL and "@" not in name:
        name += "@" + key.name.partition("@")[2]
    return Key(kind=key.kind, name=name)
