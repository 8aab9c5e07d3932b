"""Desired against live: a pure function from two states to an ordered list of changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arc_halo.manifest.documents import INFERENCE, KINDS
from arc_halo.manifest.renames import old_key
from arc_halo.reconcile.changes import (
    Change,
    Conflict,
    DesiredResource,
    FieldChange,
    LiveResource,
    Orphan,
    replaces_weights,
)
from arc_halo.types import JsonObject, Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What separates two states. `unchanged` counts the resources that are as desired."""

    changes: tuple[Change, ...]
    conflicts: tuple[Conflict, ...]
    orphans: tuple[Orphan, ...]
    unchanged: int


def diff(
    desired: Mapping[Key, DesiredResource],
    live: Mapping[Key, LiveResource],
    *,
    project: str,
    prune: bool = False,
    may_go: Callable[[Key], bool] = lambda key: True,
) -> Difference:
    """The changes that turn `live` into `desired`.

    Creations and updates come in the order of `desired`, deletions last and in the opposite
    order of kinds. Three states are compared: desired, applied last, and live; a live row that
    differs from what was applied is drift, and is set right. With `prune`, what `project`
    manages and `desired` does not name is deleted; without, it is listed as orphaned; what `may_go`
    denies is left out of both.
    """
    changes: list[Change] = []
    conflicts: list[Conflict] = []
    renamed: set[Key] = set()
    unchanged = 0
    for key, resource in desired.items():
        old = _renamed(resource, desired, live, project)
        old = None if old in renamed else old
        found = live.get(key) or (live[old] if old else None)
        conflict = _conflict(resource.key, found, project)
        change = None if conflict else _change(resource, found, old)
        conflict = conflict or _protected(change, found)
        if conflict is not None:
            conflicts.append(conflict)
            continue
        if change is None:
            unchanged += 1
        else:
            changes.append(change)
        if old is not None:
            renamed.add(old)
    gone = [
        resource
        for key, resource in live.items()
        if resource.owner == project and key not in desired and key not in renamed and may_go(key)
    ]
    deletions, refused, orphans = _departed(gone, prune)
    return Difference(
        changes=(*changes, *deletions),
        conflicts=(*conflicts, *refused),
        orphans=tuple(orphans),
        unchanged=unchanged,
    )


def needs_details(desired: DesiredResource, live: LiveResource | None) -> bool:
    """Whether the digests leave a question that only the whole documents answer."""
    return live is not None and (
        live.is_drifted
        or live.digest != desired.digest
        or live.protected != desired.lifecycle.protected
        or live.deletion != desired.lifecycle.deletion
        or live.ignore != desired.lifecycle.ignore
    )


def field_changes(before: JsonObject, after: JsonObject) -> tuple[FieldChange, ...]:
    """The fields that differ, mappings compared key by key, everything else as a whole."""
    return tuple(_fields("", before, after))


def _renamed(
    resource: DesiredResource,
    desired: Mapping[Key, DesiredResource],
    live: Mapping[Key, LiveResource],
    project: str,
) -> Key | None:
    """The live resource that this one used to be, when its new name is still free."""
    old = old_key(resource.key, resource.lifecycle)
    if old is None or resource.key in live:
        return None
    found = live.get(old)
    if found is None or old in desired or found.owner != project or not found.is_there:
        return None
    return old


def _conflict(key: Key, found: LiveResource | None, project: str) -> Conflict | None:
    if found is None or found.owner == project:
        return None
    if found.owner is None:
        message = f"{key} exists, and no project manages it"
        hint = f"`arc-halo adopt {key}` takes it over"
    else:
        message = f"{key} belongs to the project {found.owner!r}"
        hint = f"`arc-halo adopt {key} --yes` takes it from there"
    if key.kind == INFERENCE:
        hint = f"{hint}; a database has one {key.name}"
    else:
        hint = f"choose another name; or {hint}"
    return Conflict(key=key, code="AH053", message=message, hint=hint)


def _change(
    resource: DesiredResource, found: LiveResource | None, old: Key | None
) -> Change | None:
    if found is None or not found.is_there:
        return Change(
            action="create",
            key=resource.key,
            after=resource.spec,
            digest=resource.digest,
            lifecycle=resource.lifecycle,
            source_file=resource.source_file,
            build=resource.build,
            remark=resource.remark,
            is_drift=found is not None,
            reason="it was deleted outside of apply" if found is not None else None,
        )
    if old is None and not needs_details(resource, found):
        return None
    before = (found.live_spec if found.is_drifted else found.spec) or {}
    after = _with_ignored(resource, before)
    build = None if "weights" in resource.lifecycle.ignore else resource.build
    fields = field_changes(before, after)
    if found.is_drifted and not fields and not _only_ignored(resource, found):
        fields = (FieldChange(path="(derived rows)", before="changed", after="as declared"),)
    fields += _lifecycle_changes(resource, found)
    if not fields and old is None:
        return None
    return Change(
        action="rename" if old else "replace" if replaces_weights(before, after) else "update",
        key=resource.key,
        before=before,
        after=after,
        digest=resource.digest,
        fields=fields,
        lifecycle=resource.lifecycle,
        source_file=resource.source_file,
        build=build,
        remark=resource.remark,
        is_drift=found.is_drifted,
        old_key=old,
        reason="it was changed outside of apply" if found.is_drifted else None,
    )


def _protected(change: Change | None, found: LiveResource | None) -> Conflict | None:
    """Protection holds as the row has it: a change that lifts it cannot make use of that."""
    if change is None or found is None or not found.protected:
        return None
    # What was applied last, not what stands there now: to put drift right is no replacement.
    if not replaces_weights(found.spec or {}, change.after or {}):
        return None
    return Conflict(
        key=change.key,
        code="AH052",
        message=f"{change.key} is protected, and its weights would be replaced",
        hint="give them a version of their own; or declare it with `protected: false`, apply, and "
        "replace them then",
    )


def _with_ignored(resource: DesiredResource, before: JsonObject) -> JsonObject:
    kept = {name: before[name] for name in resource.lifecycle.ignore if name in before}
    return {**resource.spec, **kept}


def _only_ignored(resource: DesiredResource, found: LiveResource) -> bool:
    """Whether what changed outside of apply is just what the manifest said to leave alone."""
    moved = field_changes(found.spec or {}, found.live_spec or {})
    ignored = resource.lifecycle.ignore
    return bool(moved) and all(change.field in ignored for change in moved)


def _lifecycle_changes(resource: DesiredResource, found: LiveResource) -> tuple[FieldChange, ...]:
    pairs = (
        ("protected", found.protected, resource.lifecycle.protected),
        ("deletion", found.deletion, resource.lifecycle.deletion),
        ("ignore", list(found.ignore), list(resource.lifecycle.ignore)),
    )
    return tuple(
        FieldChange(path=path, before=before, after=after)
        for path, before, after in pairs
        if before != after
    )


def _departed(
    gone: Sequence[LiveResource], prune: bool
) -> tuple[list[Change], list[Conflict], list[Orphan]]:
    rank = {kind: -index for index, kind in enumerate(KINDS)}
    ordered = sorted(gone, key=lambda r: (rank[r.key.kind], r.key.name))
    if not prune:
        return (
            [],
            [],
            [Orphan(key=r.key, protected=r.protected, deletion=r.deletion) for r in ordered],
        )
    conflicts = [
        Conflict(
            key=r.key,
            code="AH052",
            message=f"{r.key} is protected",
            hint="declare it with `protected: false`, apply, and then take it out",
        )
        for r in ordered
        if r.protected
    ]
    changes = [
        Change(
            action="forget" if r.deletion == "orphan" else "delete",
            key=r.key,
            before=r.spec,
            reason="it is no longer declared",
        )
        for r in ordered
        if not r.protected
    ]
    return changes, conflicts, []


def _fields(path: str, before: Any, after: Any) -> Iterator[FieldChange]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*after, *before)):
            inner = f"{path}.{name}" if path else name
            yield from _fields(inner, before.get(name, ABSENT), after.get(name, ABSENT))
    elif (pair := _by_name(before, after)) is not None:
        for name in dict.fromkeys((*pair[1], *pair[0])):
            inner = f"{path}[{name}]"
            yield from _fields(inner, pair[0].get(name, ABSENT), pair[1].get(name, ABSENT))
    elif _are_rules(before) and _are_rules(after) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _fields(f"{path}[{index}]", old, new)
    elif not _is_same(before, after):
        yield FieldChange(
            path=path,
            before=None if before is ABSENT else before,
            after=None if after is ABSENT else after,
        )


def _are_rules(value: Any) -> bool:
    """Whether it is a list of mappings without names, which are told apart by their place."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _by_name(before: Any, after: Any) -> tuple[JsonObject, JsonObject] | None:
    """Two lists of members or interactions by what names their items, if that tells them apart.

    None for other lists, and where the order alone changed: that is shown as a whole.
    """
    old, new = _named_items(before), _named_items(after)
    if old is None or new is None:
        return None
    common = [name for name in old if name in new]
    return (old, new) if common == [name for name in new if name in old] else None


def _named_items(value: Any) -> JsonObject | None:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    names = [_item_name(item) for item in value]
    if None in names or len(set(names)) < len(names):
        return None
    return {str(name): item for name, item in zip(names, value, strict=True)}


def _item_name(item: JsonObject) -> str | None:
    if "model" in item:
        return str(item["model"])
    if {"from", "to", "kind"} <= item.keys():
        return f"{item['from']} {item['kind']} {item['to']}"
    return None


def _is_same(a: Any, b: Any) -> bool:
    """Equal as JSON: unlike in Python, true is not 1. As in jsonb, 1.0 is."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_same(a[name], b[name]) for name in a)
    return bool(a == b)


ABSENT = object()
