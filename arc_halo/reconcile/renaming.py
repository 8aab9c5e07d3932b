"""Renames: mistaken ones are told, and what refers to a renamed row has not drifted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from arc_halo.manifest.renames import old_key
from arc_halo.names import did_you_mean
from arc_halo.reconcile import kinds, state
from arc_halo.reconcile.changes import Change, Conflict, LiveResource
from arc_halo.store import projects
from arc_halo.store.rows import Connection
from arc_halo.types import Key


def mistaken_renames(
    changes: Sequence[Change], live: Mapping[Key, LiveResource]
) -> Iterator[Conflict]:
    """Resources that would be created, for `renamed_from` is misspelt, and the old ones deleted.

    Said of manifests only. In a database that never had the old name, or gave it up long ago,
    `renamed_from` fits nothing and means nothing.
    """
    for change in changes:
        old = old_key(change.key, change.lifecycle)
        if old is None or change.action != "create" or change.is_drift or old in live:
            continue
        if meant := _meant(change.key, old, changes):
            yield Conflict(
                key=change.key,
                code="AH054",
                message=f"{change.key} is renamed from {old.name}, which nobody manages, "
                f"and {meant} would be deleted",
                hint=f"did you mean '{meant.name}'? If it is new, take `renamed_from` out",
            )


def _meant(key: Key, old: Key, changes: Sequence[Change]) -> Key | None:
    """What is deleted and called almost like `old`; another version of `key` itself is not."""
    gone = {
        _bare(each.key): each.key
        for each in changes
        if each.action == "delete" and each.key.kind == key.kind and _bare(each.key) != _bare(key)
    }
    close = [name for name in gone if did_you_mean(_bare(old), [name])]
    return gone[close[0]] if close else None


def _bare(key: Key) -> str:
    return key.name.partition("@")[0]


def rename(conn: Connection, changes: Iterable[Change]) -> None:
    """Give what `changes` rename its new name, in the caller's transaction.

    Rows that name it show the new name too, those of other projects and those that a plan leaves
    out among them. Where nothing else became of them, that is no drift.
    """
    renamed = [(change.old_key, change.key) for change in changes if change.old_key is not None]
    if not renamed:
        return
    named = projects.naming(conn, [old.name for old, _ in renamed])
    digests = state.live_digests(conn, named)
    before = state.live_specs(conn, [key for key in named if digests.get(key) == named[key]])
    for old, new in renamed:
        kinds.BY_NAME[new.kind].rename(conn, old.name, new.name)
        projects.rename_managed(conn, new.kind, old.name, new.name)
    names = {old.name: new.name for old, new in renamed}
    after = state.live_specs(conn, before)
    same = [key for key, spec in after.items() if spec == _renamed(before[key], names)]
    projects.note_live_digests(conn, state.live_digests(conn, same))


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A document with new names in the place of old ones."""
    if isinstance(value, dict):
        return {names.get(name, name): _renamed(item, names) for name, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value
