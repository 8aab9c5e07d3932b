"""Plans and reports as lines of text, and the words for what is in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from arc_halo.manifest.documents import INFERENCE
from arc_halo.reconcile.changes import (
    Action,
    Change,
    Conflict,
    FieldChange,
    FuseBuild,
    ImportBuild,
    Orphan,
    Plan,
)
from arc_halo.reconcile.selecting import Selection
from arc_halo.sizes import format_count, format_seconds, format_size
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from arc_halo.reconcile.applying import Report
    from arc_halo.weights.building import Built

LISTED = 20
"""Creations of one kind that are listed one by one; beyond it the rest is counted."""

FEW = 3
"""Tensors that are named in the line of a merge; beyond it the rest is counted."""

GRAVITY: tuple[Action, ...] = (
    "delete", "forget", "replace", "update", "create", "rename", "adopt",
)  # fmt: skip
"""The order in which changes are shown."""

GOING = {
    "weight_sets": "weight set",
    "aliases": "alias",
    "states": "state",
    "metrics": "metric",
}
STAYING = {"training_sessions": "training session", "inference_sessions": "inference session"}
"""Rows that go with what is deleted, and rows that stay without it, in the singular."""

VALUE_WIDTH = 60
ROOT_WIDTH = 19

Style = Literal["plain", "create", "update", "delete", "warn", "error", "dim", "bold"]

_STYLES: dict[Action, Style] = {
    "create": "create",
    "update": "update",
    "replace": "delete",
    "rename": "update",
    "adopt": "update",
    "delete": "delete",
    "forget": "warn",
}
_VERBS: dict[Action, tuple[str, str]] = {
    "create": ("to create", "created"),
    "update": ("to update", "updated"),
    "replace": ("to replace", "replaced"),
    "rename": ("to rename", "renamed"),
    "adopt": ("to adopt", "adopted"),
    "delete": ("to delete", "deleted"),
    "forget": ("to let go", "let go"),
}


@dataclass(frozen=True, slots=True)
class Line:
    text: str
    style: Style = "plain"


def plan_lines(plan: Plan) -> Iterator[Line]:
    """A plan as text: what blocks it first, then what is lost, then the rest, the summary last."""
    yield from _conflict_lines(plan.conflicts)
    if plan.is_partial:
        yield Line(f"Partial: {selection_text(plan.selection)}; the rest is left alone.", "warn")
    if plan.migrations:
        yield Line(f"+ {format_count(len(plan.migrations), 'migration')} of the database", "create")
    for title, changes in sections(plan.changes):
        if title:
            yield Line(title, "bold")
        yield from _change_lines(changes)
    yield from _orphan_lines(plan.orphans)
    for note in plan.notes:
        yield Line(f"note: {note}", "dim")
    yield Line(plan_summary(plan), "bold")


def sections(changes: Sequence[Change]) -> Iterator[tuple[str | None, list[Change]]]:
    """Changes as a reader wants them, the gravest first, drift last; some parts have a title."""
    ordered = sorted(changes, key=_gravity)
    for rank, group in groupby(ordered, key=_gravity):
        listed = list(group)
        yield _title(rank, listed), listed


def _gravity(change: Change) -> int:
    if change.is_drift:
        return len(GRAVITY)
    return GRAVITY.index(grave_action(change))


def grave_action(change: Change) -> Action:
    """What a change is as far as weights go, whatever else becomes of the resource."""
    if change.loses_weights:
        return "delete"
    return "replace" if change.is_replacement else change.action


def _title(rank: int, changes: Sequence[Change]) -> str | None:
    if rank == len(GRAVITY):
        return "Changed outside of apply:"
    if GRAVITY[rank] != "delete":
        return None
    size_bytes = deleted_bytes(changes)
    weights = f", with {format_size(size_bytes)} of weights" if size_bytes else ""
    return f"Deletions: {format_count(len(changes), 'resource')}{weights}."


def deleted_bytes(changes: Sequence[Change]) -> int:
    """How many bytes of weights the deletions among `changes` take along."""
    return sum(change.losses.size_bytes for change in changes if change.losses)


def selection_text(selection: Selection) -> str:
    parts = []
    if selection.targets:
        parts.append(f"only {', '.join(selection.targets)} and what that needs")
    if selection.excludes:
        parts.append(f"without {', '.join(selection.excludes)} and what needs that")
    return ", ".join(parts)


def plan_summary(plan: Plan) -> str:
    """The last line of every plan: `Plan: 6 to create, 1 to update.`"""
    if not plan.has_changes and not plan.conflicts:
        return f"Nothing to do: {_unchanged(plan)} as declared."
    parts = [f"{plan.counts[action]} {verb}" for action, (verb, _) in _counted(plan)]
    if plan.migrations:
        parts.insert(0, f"{format_count(len(plan.migrations), 'migration')} to apply")
    blocked = f" {format_count(len(plan.conflicts), 'conflict')} to solve first."
    return f"Plan: {', '.join(parts) or 'no changes'}." + (blocked if plan.conflicts else "")


def report_lines(report: Report) -> Iterator[Line]:
    """What an apply did: one line a change, then the summary."""
    for change in report.plan.changes:
        yield Line(_line(change, done_details(change, report)), _STYLES[change.action])
    yield Line(report_summary(report), "bold")


def report_summary(report: Report) -> str:
    parts = [f"{report.plan.counts[action]} {verb}" for action, (_, verb) in _counted(report.plan)]
    weights = ""
    if report.builds:
        weights = (
            f" {format_size(report.size_bytes)} of weights, {format_size(report.new_bytes)} new,"
            f" stored in {format_size(report.stored_bytes)}."
        )
    return (
        f"Applied revision {report.revision} of {report.plan.project}: {', '.join(parts)}."
        f"{weights} {format_seconds(report.seconds)}."
    )


def as_json(value: JsonObject) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # What JSON lets stand and a terminal would obey.
    return re.sub("[\x7f-\x9f\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _counted(plan: Plan) -> Iterator[tuple[Action, tuple[str, str]]]:
    return ((action, verbs) for action, verbs in _VERBS.items() if plan.counts[action])


def _unchanged(plan: Plan) -> str:
    count = plan.unchanged_count
    return f"{format_count(count, 'resource')} {'is' if count == 1 else 'are'}"


def _conflict_lines(conflicts: Sequence[Conflict]) -> Iterator[Line]:
    for conflict in conflicts:
        yield Line(f"! {conflict.message} [{conflict.code}]", "error")
        if conflict.hint:
            yield Line(f"    hint: {conflict.hint}", "dim")


def _change_lines(changes: Sequence[Change]) -> Iterator[Line]:
    for (kind, action), group in groupby(changes, key=lambda c: (c.key.kind, c.action)):
        listed = list(group)
        shown = listed if action != "create" or len(listed) <= LISTED else listed[: LISTED // 2]
        for change in shown:
            yield Line(_planned_text(change), _STYLES[change.action])
            if cost := cost_text(change):
                yield Line(f"    {cost}", "dim")
            for field in change.fields:
                yield Line(f"    {field_text(change.key.kind, field)}", "dim")
        if len(shown) < len(listed):
            more = format_count(len(listed) - len(shown), f"more {kind}")
            yield Line(f"+ … and {more}", "create")


def _planned_text(change: Change) -> str:
    details = [build_text(change), change.reason, losses_text(change)]
    details.append(weights_text(change))
    if change.old_key is not None:
        details.insert(0, f"was {change.old_key}")
    return _line(change, [d for d in details if d])


def weights_text(change: Change) -> str | None:
    """What becomes of the weights, where neither the action nor the build says it."""
    if change.action != "delete" and change.loses_weights:
        return "its weights are taken away"
    if change.is_replacement and change.action != "replace":
        return "its weights are replaced"
    return None


def losses_text(change: Change) -> str | None:
    """What a deletion takes along, and what is left without it."""
    if change.losses is None:
        return None
    rows = change.losses.rows
    parts = [format_size(change.losses.size_bytes)] if change.losses.size_bytes else []
    parts += _counts(rows, GOING)
    left = _counts(rows, STAYING)
    goes = f"{', '.join(parts)} {'goes' if len(parts) == 1 else 'go'} too" if parts else ""
    stays = f"{' and '.join(left)} {'loses' if len(left) == 1 else 'lose'} it" if left else ""
    return "; ".join(part for part in (goes, stays) if part) or None


def _counts(rows: Mapping[str, int], names: Mapping[str, str]) -> list[str]:
    """`3 weight sets` for each of the kinds that there are any of."""
    found = [(rows[name], one, name) for name, one in names.items() if name in rows]
    return [f"1 {one}" if n == 1 else f"{n:,} {name.replace('_', ' ')}" for n, one, name in found]


def done_details(change: Change, report: Report) -> list[str]:
    """What is told of a change that was made."""
    built = report.builds.get(change.key)
    moved = _built_text(change, built) if built and _moves_weights(change) else None
    return [detail for detail in (moved, change.reason) if detail]


def _line(change: Change, details: Sequence[str]) -> str:
    text = f"{change.symbol} {change.key}"
    return f"{text:<30}  {', '.join(details)}" if details else text


def build_text(change: Change) -> str | None:
    build = change.build
    if not _moves_weights(change):
        return None
    if isinstance(build, ImportBuild):
        tensors = format_count(build.tensor_count, "tensor")
        return f"{tensors}, {format_size(build.size_bytes)} from {build.source.label}"
    if isinstance(build, FuseBuild):
        known = "" if _root(change) else ", weights known after build"
        return f"fused by {build.spec.uses} in reactor/{build.reactor}{known}"
    return None


def cost_text(change: Change) -> str | None:
    """What a merge that has to be made will cost, what a training saves."""
    if change.remark is not None:
        return change.remark if _moves_remark(change) else None
    found = change.build.estimate if isinstance(change.build, FuseBuild) else None
    if found is None or not _moves_weights(change):
        return None
    count = format_count(found.tensors, "tensor")
    todo = count if found.computed == found.tensors else f"{found.computed:,} of {count}"
    shared = f", {format_size(found.reused_bytes)} there already" if found.reused_bytes else ""
    names = f" ({_few(found.named, found.computed)})" if found.named else ""
    return (
        f"{todo} to compute{names}: {format_size(found.read_bytes)} to read, "
        f"{format_size(found.written_bytes)} to write{shared}, "
        f"about {format_seconds(found.cpu_seconds)} of CPU"
    )


def _few(names: Sequence[str], count: int) -> str:
    """The first names of so many."""
    more = [f"{count - FEW:,} more"] if count > FEW else []
    return ", ".join([*names[:FEW], *more])


def _moves_weights(change: Change) -> bool:
    """Whether weights are part of what changes; an update may leave them as they are."""
    is_new = change.action == "create"
    return is_new or any(field.path.startswith("weights") for field in change.fields)


def _moves_remark(change: Change) -> bool:
    """Whether what is remarked on is part of what changes."""
    return change.action == "create" or any(
        field.path.startswith(("model", "gradient_checkpointing")) for field in change.fields
    )


def _built_text(change: Change, built: Built) -> str:
    verb = "fused" if isinstance(change.build, FuseBuild) else "imported"
    size = f"{format_count(built.tensor_count, 'tensor')}, {format_size(built.size_bytes)}"
    if not built.tensors_built:
        return f"{size}, weights already there"
    some = "" if built.tensors_built >= built.tensor_count else f"{built.tensors_built:,} of "
    return f"{verb} {some}{size}, {format_size(built.stored_bytes)} stored"


def _root(change: Change) -> str | None:
    weights = (change.after or {}).get("weights")
    return weights["root"] if weights else None


def field_text(kind: str, field: FieldChange) -> str:
    """`weight: 0.4 -> 0.6`, `members[poet@1.0.0]: added`"""
    before, after = field.before, field.after
    if kind == INFERENCE:
        from arc_halo.manifest.caches import as_written

        before, after = as_written(field.path, before), as_written(field.path, after)
    if field.path.endswith("]") and (before is None) != (after is None):
        return f"{field.path}: {'added' if before is None else 'removed'}"
    is_to_come = field.path == "weights.root" and after is None
    told = "known after build" if is_to_come else _value(after)
    return f"{field.path}: {_value(before)} -> {told}"


def _value(value: Any) -> str:
    if isinstance(value, str) and value.startswith("sha256:"):
        return value[:ROOT_WIDTH] + "…"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 1] + "…"


def _orphan_lines(orphans: Sequence[Orphan]) -> Iterator[Line]:
    for orphan in orphans[:LISTED]:
        kept = " (protected)" if orphan.protected else ""
        yield Line(f"? {orphan.key} is no longer declared, and kept{kept}", "warn")
    if len(orphans) > LISTED:
        yield Line(f"? … and {len(orphans) - LISTED} more are no longer declared", "warn")
    if orphans:
        yield Line(
            "    hint: `--prune`, or `settings.prune: true`, deletes what left the manifest", "dim"
        )
