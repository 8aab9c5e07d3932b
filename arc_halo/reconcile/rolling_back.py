"""Going back: a plan whose desired state is what the project was after an earlier revision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from arc_halo.manifest.documents import (
    KINDS,
    MODEL,
    Deletion,
    Desired,
    Lifecycle,
    Settings,
    spec_digest,
)
from arc_halo.plugins import PluginManager
from arc_halo.reconcile import state
from arc_halo.reconcile.changes import Conflict, DesiredResource, LiveResource, Plan
from arc_halo.reconcile.history import find_revision
from arc_halo.reconcile.planning import Wanted, compare
from arc_halo.store import builds, migrate, revisions, tokenizers
from arc_halo.store.revisions import PastResource, RevisionRow
from arc_halo.store.rows import Connection
from arc_halo.tensors.digests import parse_digest
from arc_halo.types import JsonObject, Key


def plan_rollback(conn: Connection, project: str, revision: int, plugins: PluginManager) -> Plan:
    """The plan that brings the project back to what it was after `revision`.

    It needs no manifest and no Git. Three states are compared, as always: what was changed by
    hand since is told as drift. Raises `NotFoundError` for a revision that there is not. Weights
    that were collected since are conflicts.
    """
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        migrate.check(conn)
        found = find_revision(conn, project, revision).row
        past = revisions.state_at(conn, project, revision)
        live = _live(conn, project, revision, past)
        resources = _resources(past, live.resources, _called_now(conn, project, revision))
        wanted = Wanted(desired=_desired(project, found), plugins=plugins, prune=True)
        difference = compare(conn, wanted, live, resources)
    return Plan(
        project=project,
        base_revision=live.head_revision,
        manifest_digest=found.manifest_digest,
        environment=found.environment,
        changes=difference.changes,
        conflicts=(*difference.conflicts, *_gone(conn, past, revision)),
        unchanged_count=difference.unchanged,
        managed_count=live.managed_count(project),
        declared_count=len(past),
        prune=True,
        rolled_back_to=revision,
    )


def _live(
    conn: Connection, project: str, revision: int, past: Iterable[PastResource]
) -> state.LiveState:
    """The live state, as a rollback sees it.

    What was taken over since is given back to nobody, and not deleted; what the project let go
    since, and nobody took, is taken again.
    """
    live = state.read(conn, project, [each.key for each in past])
    adopted = revisions.adopted(conn, project, after=revision)
    let_go = revisions.let_go(conn, project)
    found = {}
    for key, each in live.resources.items():
        if key in adopted:
            found[key] = replace(each, deletion="orphan")
        elif each.owner is None and key in let_go:
            found[key] = replace(each, owner=project, is_drifted=True, digest=b"")
        else:
            found[key] = each
    return replace(live, resources=found)


def _called_now(conn: Connection, project: str, revision: int) -> dict[Key, Key]:
    """What resources of that time are called now, of those that were renamed since."""
    then: dict[Key, Key] = {}
    for old, new in revisions.renames(conn, project, after=revision):
        then[new] = then.pop(old, old)
    return {old: new for new, old in then.items()}


def _desired(project: str, revision: RevisionRow) -> Desired:
    return Desired(
        project=project,
        declarations={},
        settings=Settings(),
        manifest_digest=revision.manifest_digest,
        env=revision.environment,
    )


def _resources(
    past: Iterable[PastResource],
    live: Mapping[Key, LiveResource],
    called_now: Mapping[Key, Key],
) -> dict[Key, DesiredResource]:
    ordered = sorted(past, key=lambda each: (KINDS.index(each.kind), each.name))
    return {
        each.key: _resource(each, live.get(each.key), called_now.get(each.key)) for each in ordered
    }


def _resource(
    past: PastResource, live: LiveResource | None, called_now: Key | None
) -> DesiredResource:
    deletion: Deletion = "orphan" if past.deletion == "orphan" else "delete"
    ignore = live.ignore if live else ()
    return DesiredResource(
        key=past.key,
        spec=past.spec,
        digest=spec_digest(past.spec),
        lifecycle=Lifecycle(
            protected=past.protected,
            deletion=deletion,
            renamed_from=called_now.name if called_now else None,
            ignore=ignore,
        ),
        source_file=None,
    )


def _gone(conn: Connection, past: Iterable[PastResource], revision: int) -> list[Conflict]:
    """Weights and tokenizers that models had then, and that are not kept any more."""
    models = [each for each in past if each.kind == MODEL]
    roots = {each.key: digest for each in models if (digest := _digest(each, "weights", "root"))}
    texts = {
        each.key: digest for each in models if (digest := _digest(each, "tokenizer", "digest"))
    }
    have_roots = builds.sets_by_root(conn, list(roots.values()))
    have_texts = tokenizers.documents(conn, texts.values())
    return [
        Conflict(
            key=key,
            code="AH064",
            message=f"the {what} that {key} had in revision {revision} were collected since",
            hint="import them again by applying the manifest of that time; "
            "`settings.retain_revisions` says how many are kept",
        )
        for what, wanted, have in (
            ("weights", roots, have_roots),
            ("tokens", texts, have_texts),
        )
        for key, digest in wanted.items()
        if digest not in have
    ]


def _digest(resource: PastResource, part: str, field: str) -> bytes | None:
    document: JsonObject = resource.spec.get(part) or {}
    text = document.get(field)
    return parse_digest(text) if text else None
