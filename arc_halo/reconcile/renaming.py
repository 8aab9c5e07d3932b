"""Renaming rows: what refers to them is followed, so that nobody takes it for changed by hand."""

from __future__ import annotations

from collections.abc import Iterable

from arc_halo.reconcile import kinds, state
from arc_halo.reconcile.changes import Change
from arc_halo.store import drift, projects
from arc_halo.store.rows import Connection


def rename(conn: Connection, changes: Iterable[Change]) -> None:
    """Give what `changes` rename its new name, in the caller's transaction.

    Rows that name it show the new name too, those of other projects and those that a plan leaves
    out among them. They had not drifted before, so they have not after.
    """
    renamed = [(change.old_key, change.key) for change in changes if change.old_key is not None]
    if not renamed:
        return
    before = {project: drift.drifted(conn, project) for project in projects.names(conn)}
    for old, new in renamed:
        kinds.BY_NAME[new.kind].rename(conn, old.name, new.name)
        projects.rename_managed(conn, new.kind, old.name, new.name)
    for project, drifted in before.items():
        moved = set(drift.drifted(conn, project)) - set(drifted)
        projects.note_live_digests(conn, state.live_digests(conn, moved))
