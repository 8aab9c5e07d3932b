"""The values a plan is made of, and what they have in common with the report."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from arc_halo.manifest.documents import (
    Lifecycle,
    ReactorSpec,
    WeightsSource,
    canonical,
    spec_digest,
)
from arc_halo.reconcile.selecting import EVERYTHING, Selection
from arc_halo.types import JsonObject, Key

if TYPE_CHECKING:
    from arc_halo.fusion.estimating import Estimate
    from arc_halo.fusion.recipes import FusionRecipe
    from arc_halo.manifest.tokenizers import Tokenizer

Action = Literal["create", "update", "replace", "rename", "adopt", "delete", "forget"]

SYMBOLS: Mapping[Action, str] = {
    "create": "+",
    "update": "~",
    "replace": "-/+",
    "rename": ">",
    "adopt": "<",
    "delete": "-",
    "forget": "x",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportBuild:
    """Weights to be imported: the file, and the root that reading it gave.

    `delta_root` names the weights that deltas are taken against, where they are known already.
    """

    source: WeightsSource
    root: bytes
    size_bytes: int
    tensor_count: int
    delta_root: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseBuild:
    """Weights to be fused. `recipe` is None while an input itself is still to be made.

    `roots` has the root of each input, as far as it is known. The `estimate` is there where
    weights have to be made and their tensors are known.
    """

    reactor: str
    spec: ReactorSpec
    recipe: FusionRecipe | None
    roots: Mapping[str, bytes | None]
    architectures: Mapping[str, JsonObject] = field(default_factory=dict)
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    estimate: Estimate | None = None


Build = ImportBuild | FuseBuild


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredResource:
    """A declared resource as it should be; `build` is what has to be made for it first.

    `remark` is a line for people on what it comes to.
    """

    key: Key
    spec: JsonObject
    digest: bytes
    lifecycle: Lifecycle
    source_file: str | None
    build: Build | None = None
    remark: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveResource:
    """A resource as the database has it.

    `owner` is None for a row that no project manages; `is_there` is False for a record whose row
    was deleted. `spec` (as applied last) and `live_spec` (as it stands) are read for those
    resources only whose digests differ from what is desired.
    """

    key: Key
    owner: str | None
    is_there: bool = True
    is_drifted: bool = False
    digest: bytes | None = None
    protected: bool = False
    deletion: str = "delete"
    ignore: tuple[str, ...] = ()
    spec: JsonObject | None = None
    live_spec: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One field of a document, `architecture.hidden_size`, before and after."""

    path: str
    before: Any
    after: Any

    @property
    def field(self) -> str:
        """The field of the document that the path begins with: `members` of `members[a].weight`."""
        return re.split(r"[.\[]", self.path, maxsplit=1)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a deletion takes along: raw bytes of weights, and how many rows of each kind."""

    size_bytes: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing apply will do. `before` and `after` are whole documents.

    A model is replaced where its weights become others; `losses` are known of deletions.
    """

    action: Action
    key: Key
    before: JsonObject | None = None
    after: JsonObject | None = None
    digest: bytes | None = None
    fields: tuple[FieldChange, ...] = ()
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    source_file: str | None = None
    build: Build | None = None
    remark: str | None = None
    is_drift: bool = False
    old_key: Key | None = None
    reason: str | None = None
    losses: Losses | None = None

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.action]

    @property
    def is_replacement(self) -> bool:
        """Whether the weights of a model become others, whatever else becomes of it."""
        is_kept = self.before is not None and self.after is not None
        return is_kept and replaces_weights(self.before or {}, self.after or {})

    @property
    def loses_weights(self) -> bool:
        """Whether a model is left without the weights it had, or nothing is left of it."""
        if self.after is None:
            return self.action == "delete"
        root = (self.after.get("weights") or {}).get("root")
        return self.is_replacement and root is None and self.build is None

    @property
    def identity(self) -> list[str | bool | None]:
        """What tells the change from another one: where it starts from, and what it comes to.

        The root of what is fused is no part of it: it is known once somebody has made that.
        """
        digest = self.digest
        if isinstance(self.build, FuseBuild) and self.after is not None:
            digest = spec_digest({**self.after, "weights": None})
        return [
            self.action,
            str(self.key),
            str(self.old_key) if self.old_key else None,
            spec_digest(self.before).hex() if self.before is not None else None,
            digest.hex() if digest else None,
            self.lifecycle.protected,
            self.lifecycle.deletion,
            " ".join(self.lifecycle.ignore),
        ]

    def as_json(self) -> JsonObject:
        return {
            "action": self.action,
            "kind": self.key.kind,
            "name": self.key.name,
            "old_name": self.old_key.name if self.old_key else None,
            "is_drift": self.is_drift,
            "reason": self.reason,
            "source": self.source_file,
            "before": self.before,
            "after": self.after,
            "fields": [{"path": f.path, "before": f.before, "after": f.after} for f in self.fields],
            "build": _build_json(self.build),
            "remark": self.remark,
        }


def replaces_weights(before: JsonObject, after: JsonObject) -> bool:
    """Whether the weights that a model has become others, or none."""
    had, has = before.get("weights") or {}, after.get("weights") or {}
    return had.get("root") is not None and had["root"] != has.get("root")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Why a resource cannot be changed; apply refuses while there is one."""

    key: Key
    code: str
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A managed resource that left the manifest, and what would happen to it with prune."""

    key: Key
    protected: bool
    deletion: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An ordered list of changes from one base revision. The printer and apply walk it alike.

    `tokenizers` are those that its documents name, by digest. `selection` is what it was limited
    to, `managed_count` how many resources the project manages now, `declared_count` how many it
    declares. A plan that rolls back says to which revision; one of a manifest that was rolled back
    says by which.
    """

    project: str
    base_revision: int
    manifest_digest: bytes
    changes: tuple[Change, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    orphans: tuple[Orphan, ...] = ()
    notes: tuple[str, ...] = ()
    migrations: tuple[str, ...] = ()
    unchanged_count: int = 0
    tokenizers: Mapping[bytes, Tokenizer] = field(default_factory=dict)
    environment: str | None = None
    selection: Selection = EVERYTHING
    prune: bool = False
    managed_count: int = 0
    declared_count: int = 0
    rolled_back_to: int | None = None
    undone_by: int | None = None

    @property
    def is_partial(self) -> bool:
        """Whether some of the manifest was left out."""
        return self.selection != EVERYTHING

    @property
    def is_whole(self) -> bool:
        """Whether the database matches the manifest, and nothing else, once this is applied."""
        return not self.is_partial and self.rolled_back_to is None

    @property
    def is_emptying(self) -> bool:
        """Whether nothing is declared, so that everything would go."""
        gone = self.counts.get("delete", 0) + self.counts.get("forget", 0)
        return not self.declared_count and gone > 0

    @property
    def has_changes(self) -> bool:
        return bool(self.changes or self.migrations)

    @property
    def deletions(self) -> tuple[Change, ...]:
        """What is deleted, and models that lose their weights."""
        return tuple(change for change in self.changes if change.loses_weights)

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many changes there are of each action."""
        return Counter(change.action for change in self.changes)

    @cached_property
    def digest(self) -> bytes:
        """Names the plan: its base, its manifest and its changes."""
        identity = {
            "project": self.project,
            "base_revision": self.base_revision,
            "manifest": self.manifest_digest.hex(),
            "environment": self.environment,
            "rolled_back_to": self.rolled_back_to,
            "changes": [change.identity for change in self.changes],
        }
        return hashlib.sha256(b"arc-halo/plan/2\0" + canonical(identity)).digest()


def _build_json(build: Build | None) -> JsonObject | None:
    if build is None:
        return None
    if isinstance(build, ImportBuild):
        return {
            "import": build.source.label,
            "size_bytes": build.size_bytes,
            "tensor_count": build.tensor_count,
        }
    return {
        "fuse": f"reactor/{build.reactor}",
        "uses": build.spec.uses,
        "inputs": {name: root.hex() if root else None for name, root in build.roots.items()},
        "recipe_key": build.recipe.key.hex() if build.recipe else None,
        "estimate": asdict(build.estimate) if build.estimate else None,
    }
