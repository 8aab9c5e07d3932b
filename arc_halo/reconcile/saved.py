"""Plans in files: written to be reviewed, read to be applied exactly, or refused."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from arc_halo.errors import (
    ArcHaloError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
    StalePlanError,
)
from arc_halo.formats._files import replacing
from arc_halo.reconcile.changes import Plan
from arc_halo.reconcile.git import GitState
from arc_halo.reconcile.plan_document import FORMAT_VERSION, plan_json
from arc_halo.reconcile.report import as_json
from arc_halo.store import revisions
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject

NAMED = 3
"""Resources that are named as moved; beyond it the rest is counted."""


@dataclass(frozen=True, kw_only=True)
class SavedPlan:
    """A plan as a file has it."""

    label: str
    document: JsonObject

    @property
    def project(self) -> str:
        return str(self.document["project"])

    @property
    def environment(self) -> str | None:
        environment = self.document["environment"]
        return None if environment is None else str(environment)

    @property
    def prune(self) -> bool:
        return bool(self.document["options"]["prune"])

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.document["options"]["targets"])

    @property
    def excludes(self) -> tuple[str, ...]:
        return tuple(self.document["options"]["excludes"])

    @property
    def migrations(self) -> tuple[str, ...]:
        return tuple(self.document["migrations"])

    @property
    def base_revision(self) -> int:
        return int(self.document["base_revision"])

    def migrated(self) -> SavedPlan:
        """The same once its migrations are applied."""
        return SavedPlan(label=self.label, document={**self.document, "migrations": []})

    @cached_property
    def changes(self) -> dict[str, Any]:
        """What each change comes to, by address."""
        return _comparable(self.document)


def save_plan(path: Path, plan: Plan, git: GitState | None) -> None:
    """Write the plan, for its owner alone to read. Raises `RefusedError` (AH014) for a file that
    is something else."""
    if path.exists() and not _is_plan(path):
        raise RefusedError(
            f"{path} is there already, and is no plan", hint="choose another file", code="AH014"
        )
    with replacing(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write((as_json(plan_json(plan, git=git)) + "\n").encode())


def read_plan(path: Path) -> SavedPlan:
    """The plan in a file. Raises `InvalidInputError` for what is none, or one of another format."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise NotFoundError(f"{path}: {exc.strerror}", hint="name a plan file") from exc
    except (ValueError, RecursionError) as exc:
        raise _no_plan(path, str(exc)) from exc
    version = document.get("format_version") if isinstance(document, dict) else None
    if not isinstance(version, str):
        raise _no_plan(path, "it has no format_version")
    if version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
        raise InvalidInputError(
            f"{path} has the format version {version}, this program reads {FORMAT_VERSION}",
            hint="plan again with this version of Arc-Halo",
            code="AH006",
        )
    _check_schema(path, document)
    return SavedPlan(label=str(path), document=document)


def check_unmoved(conn: Connection, saved: SavedPlan, plan: Plan) -> None:
    """Raise `StalePlanError`, with what moved, unless `plan` is what was saved.

    `plan` is made anew, by the same options, from the manifest and the database as they are now.
    """
    document = saved.document
    if (done := _done(conn, saved, plan)) is not None:
        raise StalePlanError(
            f"{saved.label} was applied already, as revision {done.revision} by {_who(done)}",
            hint="plan again",
        )
    if not (reasons := _moved(conn, saved, plan)):
        return
    raise StalePlanError(
        f"{saved.label} is not what an apply would do now: {'; '.join(reasons)}",
        hint="plan again"
        + (
            f" (it was made by Arc-Halo {document['tool_version']})"
            if document["tool_version"] != plan_json(plan)["tool_version"]
            else ""
        ),
    )


def _moved(conn: Connection, saved: SavedPlan, plan: Plan) -> list[str]:
    reasons = []
    if saved.project != plan.project:
        reasons.append(f"it is of the project {saved.project!r}, this is {plan.project!r}")
    if saved.environment != plan.environment:
        then, now = (each or "none" for each in (saved.environment, plan.environment))
        reasons.append(f"it is for another environment ({then} then, {now} here)")
    if saved.document["manifest_digest"] != plan.manifest_digest.hex():
        reasons.append(
            f"the manifest is another one (sha256:{saved.document['manifest_digest'][:12]}… then, "
            f"sha256:{plan.manifest_digest.hex()[:12]}… here)"
        )
    # Those that somebody else has applied meanwhile are as good as applied.
    if not set(plan.migrations) <= set(saved.migrations):
        then, now = (", ".join(each) or "none" for each in (saved.migrations, plan.migrations))
        reasons.append(f"the pending migrations are others ({then} then, {now} now)")
    if saved.base_revision != plan.base_revision:
        reasons.append(_revisions_since(conn, saved, plan))
    reasons += _moved_changes(saved.changes, _comparable(_plain(plan_json(plan))))
    if not reasons and saved.document["plan_digest"] != plan.digest.hex():
        reasons.append("it has the digest of another plan")
    return reasons


def _moved_changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = _differing(then, now)
    drifted = {name for name, change in now.items() if change["is_drift"]}
    drifted -= {name for name, change in then.items() if change["is_drift"]}
    by_hand = [name for name in names if name in drifted]
    others = [name for name in names if name not in drifted]
    reasons = [f"{_few(by_hand)} was changed outside of apply"] if by_hand else []
    return [*reasons, f"{_few(others)} would be changed otherwise"] if others else reasons


def _done(conn: Connection, saved: SavedPlan, plan: Plan) -> revisions.RevisionRow | None:
    """The revision that the saved plan came to, if it was applied."""
    if saved.base_revision >= plan.base_revision:
        return None
    return revisions.by_plan(conn, plan.project, bytes.fromhex(saved.document["plan_digest"]))


def _revisions_since(conn: Connection, saved: SavedPlan, plan: Plan) -> str:
    then, now = saved.base_revision, plan.base_revision
    if now < then:
        return f"{plan.project} is at revision {now}, and the plan starts from {then}"
    since = revisions.listed(conn, plan.project, after=then, limit=1)
    last = f", the last by {_who(since[0])}" if since else ""
    moved = {f"{key.kind}/{key.name}" for key in revisions.touched(conn, plan.project, after=then)}
    ours = sorted(moved & saved.changes.keys())
    share = f", which changed {_few(ours)}" if ours else ", and touched nothing of it"
    return f"{plan.project} went from revision {then} to {now}{last}{share}"


def _who(revision: revisions.RevisionRow) -> str:
    return f"{revision.actor} at {revision.created_at:%Y-%m-%d %H:%M:%S%z}"


def _comparable(document: JsonObject) -> dict[str, Any]:
    return {change["address"]: change for change in document["resource_changes"]}


def _plain(document: JsonObject) -> JsonObject:
    """As it would be read from a file."""
    plain: JsonObject = json.loads(json.dumps(document))
    return plain


def _differing(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(
        name
        for name in {**then, **now}
        if name not in then or name not in now or not _is_same(then[name], now[name])
    )


def _is_same(then: JsonObject, now: JsonObject) -> bool:
    """Whether two changes come to the same.

    What is fused, or goes into that, may have been made meanwhile, as by an apply that was
    interrupted: roots and recipes are compared where both know them.
    """
    (first, known), (second, found) = _told_apart(then), _told_apart(now)
    return first == second and all(
        None in (known[name], found[name]) or known[name] == found[name]
        for name in known.keys() & found.keys()
    )


def _told_apart(change: JsonObject) -> tuple[JsonObject, JsonObject]:
    """What a change comes to, and the root, the recipe and the inputs of what it fuses."""
    fields = ("action", "old_name", "change", "protected", "deletion")
    told = {field: change[field] for field in fields}
    build = change["build"] or {}
    if "fuse" not in build:
        return told, {}
    after = change["change"]["after"]
    weights = after["weights"]
    told["change"] = {**told["change"], "after": {**after, "weights": {**weights, "root": None}}}
    inputs = {f"model/{name}": root for name, root in build.get("inputs", {}).items()}
    return told, {"root": weights["root"], "recipe_key": build["recipe_key"], **inputs}


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _is_plan(path: Path) -> bool:
    try:
        read_plan(path)
    except ArcHaloError:
        return False
    return True


def _check_schema(path: Path, document: JsonObject) -> None:
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(published_schema("plan"))
    if error := next(validator.iter_errors(document), None):
        place = "/".join(map(str, error.absolute_path))
        raise _no_plan(path, f"{place or 'the document'}: {error.message[:200]}")


def published_schema(name: str) -> JsonObject:
    """The JSON Schema of a document that the program prints: `plan`, `report` and so on."""
    text = (files("arc_halo") / "schemas" / f"{name}.schema.json").read_text("utf-8")
    schema: JsonObject = json.loads(text)
    return schema


def _no_plan(path: Path, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path} is no plan of Arc-Halo: {reason}",
        hint="`arc-halo plan --out FILE` writes one",
        code="AH006",
    )
