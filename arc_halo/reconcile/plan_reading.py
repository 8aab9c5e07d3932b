"""A plan read from its document, for people: what only an apply needs of it is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.fusion.estimating import Estimate
from arc_halo.manifest.documents import Lifecycle, ReactorSpec, WeightsSource
from arc_halo.reconcile.changes import (
    Build,
    Change,
    Conflict,
    FieldChange,
    FuseBuild,
    ImportBuild,
    Losses,
    Orphan,
    Plan,
)
from arc_halo.reconcile.selecting import Selection
from arc_halo.types import JsonObject, Key


def plan_of(document: JsonObject) -> Plan:
    """The plan that a document tells of: it is printed as the plan was, and no more.

    Raises `InvalidInputError` for one that was altered, or that another version wrote.
    """
    try:
        return _plan(document)
    except (KeyError, TypeError, AttributeError) as exc:
        raise InvalidInputError(
            f"the plan does not tell what is to be shown of it: {exc}",
            hint="plan again with this version of Arc-Halo",
            code="AH006",
        ) from exc


def _plan(document: JsonObject) -> Plan:
    options = document["options"]
    return Plan(
        project=document["project"],
        base_revision=document["base_revision"],
        manifest_digest=bytes.fromhex(document["manifest_digest"]),
        changes=tuple(map(_change, document["resource_changes"])),
        conflicts=tuple(map(_conflict, document["conflicts"])),
        orphans=tuple(map(_orphan, document["orphans"])),
        notes=tuple(document["notes"]),
        migrations=tuple(document["migrations"]),
        unchanged_count=document["summary"]["unchanged"],
        environment=document["environment"],
        selection=Selection(targets=tuple(options["targets"]), excludes=tuple(options["excludes"])),
        prune=options["prune"],
        rolled_back_to=document["rolled_back_to"],
    )


def _change(told: JsonObject) -> Change:
    kind, old_name = told["kind"], told["old_name"]
    return Change(
        action=told["action"],
        key=Key(kind=kind, name=told["name"]),
        before=told["change"]["before"],
        after=told["change"]["after"],
        fields=tuple(FieldChange(**each) for each in told["fields"]),
        lifecycle=Lifecycle(protected=told["protected"], deletion=told["deletion"]),
        source_file=told["source"],
        build=_build(told["build"]),
        remark=told["remark"],
        is_drift=told["is_drift"],
        old_key=None if old_name is None else Key(kind=kind, name=old_name),
        reason=told["reason"],
        losses=None if told["losses"] is None else Losses(**told["losses"]),
    )


def _build(told: JsonObject | None) -> Build | None:
    if told is None:
        return None
    if "import" in told:
        label = told["import"]
        return ImportBuild(
            source=WeightsSource(path=Path(label), label=label, format=""),
            root=b"",
            size_bytes=told["size_bytes"],
            tensor_count=told["tensor_count"],
        )
    estimate: dict[str, Any] | None = told["estimate"]
    uses = told["uses"]
    return FuseBuild(
        reactor=told["fuse"].partition("/")[2],
        spec=ReactorSpec(type="merge", strategy=uses, uses=uses, params={}, members=()),
        recipe=None,
        roots={},
        estimate=None if estimate is None else Estimate(**estimate),
    )


def _conflict(told: JsonObject) -> Conflict:
    return Conflict(
        key=_key(told["address"]), code=told["code"], message=told["message"], hint=told["hint"]
    )


def _orphan(told: JsonObject) -> Orphan:
    return Orphan(key=_key(told["address"]), protected=told["protected"], deletion=told["deletion"])


def _key(address: str) -> Key:
    kind, _, name = address.partition("/")
    return Key(kind=kind, name=name)
