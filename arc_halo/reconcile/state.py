"""Reading live state: set-based, a constant number of queries whatever the project's size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from arc_halo.manifest.documents import RegisteredModel
from arc_halo.reconcile import kinds
from arc_halo.reconcile.changes import LiveResource
from arc_halo.store import aliases, projects
from arc_halo.store.rows import Connection, LiveRow
from arc_halo.types import JsonObject, Key


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveState:
    """What the database has of the resources asked for, and of all that the project manages."""

    head_revision: int
    manifest_digest: bytes | None
    resources: Mapping[Key, LiveResource]

    def managed_count(self, project: str) -> int:
        return sum(each.owner == project for each in self.resources.values())


def read(conn: Connection, project: str, keys: Iterable[Key]) -> LiveState:
    """The live state, without documents. Call it inside one transaction."""
    head = projects.head(conn, project)
    wanted = list(keys)
    managed = projects.managed(conn, project, wanted)
    rows = _live_rows(conn, dict.fromkeys((*wanted, *managed)))
    resources = {key: _managed(record, rows.get(key)) for key, record in managed.items()}
    for key in rows.keys() - managed.keys():
        resources[key] = LiveResource(key=key, owner=None)
    return LiveState(
        head_revision=head.head_revision,
        manifest_digest=head.manifest_digest,
        resources=resources,
    )


def managed_keys(conn: Connection, project: str) -> list[Key]:
    """What the project manages."""
    return [row.key for row in projects.managed(conn, project, ()).values()]


def with_details(
    conn: Connection, resources: Mapping[Key, LiveResource], keys: Iterable[Key]
) -> dict[Key, LiveResource]:
    """`resources`, with the documents of those that `keys` names."""
    wanted = [key for key in keys if key in resources]
    if not wanted:
        return dict(resources)
    applied = projects.managed_specs(conn, wanted)
    drifted = [key for key in wanted if resources[key].is_drifted]
    live = live_specs(conn, drifted)
    detailed = {
        key: replace(resources[key], spec=applied.get(key), live_spec=live.get(key))
        for key in wanted
    }
    return {**resources, **detailed}


def registered_models(
    conn: Connection, pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], RegisteredModel]:
    """The models that the aliases (name, alias) stand for now."""
    return {
        (name, alias): RegisteredModel(
            name=name,
            version=version,
            type=type_,
            architecture=architecture,
            root=root,
            tokenizer=tokenizer,
        )
        for name, alias, version, type_, architecture, root, tokenizer in aliases.find(conn, pairs)
    }


def applied_weights(conn: Connection, keys: Iterable[Key]) -> dict[Key, JsonObject]:
    """The `weights` of the last applied documents of models."""
    return _applied(conn, keys, "weights")


def applied_tokenizers(conn: Connection, keys: Iterable[Key]) -> dict[Key, JsonObject]:
    """The `tokenizer` of the last applied documents of models."""
    return _applied(conn, keys, "tokenizer")


def live_digests(conn: Connection, keys: Iterable[Key]) -> dict[Key, str]:
    return {key: row.digest for key, row in _live_rows(conn, keys).items()}


def live_specs(conn: Connection, keys: Iterable[Key]) -> dict[Key, JsonObject]:
    """The documents of `keys` as their rows say; what is not there is left out."""
    names: dict[str, list[str]] = {}
    for key in keys:
        names.setdefault(key.kind, []).append(key.name)
    return {
        Key(kind=kind, name=name): spec
        for kind, wanted in names.items()
        for name, spec in kinds.BY_NAME[kind].live_specs(conn, wanted).items()
    }


def _applied(conn: Connection, keys: Iterable[Key], field: str) -> dict[Key, JsonObject]:
    specs = projects.managed_specs(conn, keys)
    return {key: spec[field] for key, spec in specs.items() if spec.get(field)}


def _live_rows(conn: Connection, keys: Iterable[Key]) -> dict[Key, LiveRow]:
    names: dict[str, list[str]] = {}
    for key in keys:
        names.setdefault(key.kind, []).append(key.name)
    return {
        Key(kind=kind, name=name): row
        for kind, wanted in names.items()
        for name, row in kinds.BY_NAME[kind].live(conn, wanted).items()
    }


def _managed(record: projects.Managed, row: LiveRow | None) -> LiveResource:
    return LiveResource(
        key=record.key,
        owner=record.project,
        is_there=row is not None,
        is_drifted=row is not None and row.digest != record.live_digest,
        digest=bytes(record.spec_digest),
        protected=record.protected,
        deletion=record.deletion,
        ignore=tuple(record.ignored),
    )
