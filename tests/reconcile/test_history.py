"""History: every apply remembered, the state of any revision brought back."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from arc_halo.cli.main import run
from arc_halo.errors import NotFoundError, RefusedError
from arc_halo.reconcile.history import (
    fields_of,
    remarks,
    revision_json,
    revision_lines,
    revision_markdown,
)
from arc_halo.reconcile.limits import UNLIMITED
from arc_halo.reconcile.plan_document import plan_json
from arc_halo.store import aliases, revisions


def history(workshop):
    with workshop.project() as project:
        return project.history()


def roll_back(workshop, revision, limits=UNLIMITED):
    with workshop.project() as project:
        plan = project.plan_rollback(revision)
        return project.apply(plan, limits=limits)


def state(workshop, dump):
    """The typed rows and the digests of what is managed, whatever revision wrote them."""
    import psycopg

    with psycopg.connect(workshop.url) as conn:
        return dump(conn), conn.execute(
            "SELECT kind, name, spec, spec_digest, live_digest, protected, deletion "
            "FROM managed_resources ORDER BY 1, 2"
        ).fetchall()


@pytest.fixture
def story(workshop):
    """Three revisions: two models and a merge; other weights; a rename, a loss, a newcomer."""

    def weights(name, value):
        return workshop.weights(f"{name}.safetensors", {"t": np.full(3, value, np.float32)})

    def model(name, value, **fields):
        return {"type": "other", "weights": weights(name, value), **fields}

    def merge(*members):
        return {
            "type": "merge",
            "strategy": "linear",
            "members": [{"model": each} for each in members],
            "produces": {"model": "ab", "version": "1", "aliases": ["live"]},
        }

    first = {
        "models": {"a@1": model("a", 1), "b@1": model("b", 2, protected=True)},
        "strategies": {"even": {"uses": "linear"}},
        "reactors": {"one": merge("a", "b")},
    }
    workshop.apply(first)
    second = {**first, "models": {**first["models"], "a@1": model("a", 5, tags={"team": "x"})}}
    workshop.apply(second)
    third = {
        "models": {
            "c@1": {**second["models"]["a@1"], "renamed_from": "a"},
            "b@1": second["models"]["b@1"],
            "new@1": {"type": "other"},
        },
        "reactors": {"one": merge("c", "b")},
    }
    workshop.apply(third, prune=True)
    return workshop


def test_every_apply_is_remembered_with_who_and_what(story, monkeypatch):
    rows = history(story)
    assert [row.revision for row in rows] == [3, 2, 1]
    assert rows[0].database_role == "postgres"
    assert rows[0].summary["changes"]["rename"] == 1
    with story.project() as project:
        found = project.past_revision(2)
    assert [field.path for c in found.changes if c.name == "a@1" for field in fields_of(c)] == [
        "tags.team",
        "weights.root",
    ]
    text = "\n".join(line.text for line in revision_lines(found))
    assert "Revision 2 of work" in text
    assert "-/+ model/a@1" in text
    assert "- `-/+ model/a@1`" in revision_markdown(found)
    assert revision_json(found)["changes"][0]["before"] is not None


def test_a_ci_run_is_named_in_place_of_the_login(workshop, monkeypatch):
    for name, value in {
        "GITHUB_ACTOR": "octo",
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "o/r",
        "GITHUB_RUN_ID": "7",
    }.items():
        monkeypatch.setenv(name, value)
    workshop.apply({"models": {"a@1": {"type": "other"}}})
    (row,) = history(workshop)
    assert (row.actor, row.run_url) == ("octo", "https://github.com/o/r/actions/runs/7")


def test_a_rollback_restores_what_was(story, dump):
    """Weights, aliases, lifecycle and names, all of it."""
    workshop = story
    before = state(workshop, dump)
    roll_back(workshop, 1)
    rows = history(workshop)
    assert (rows[0].revision, rows[0].rolled_back_to, remarks(rows[0])) == (4, 1, "rollback to 1")
    names = workshop.sql("SELECT kind, name FROM managed_resources ORDER BY 1, 2")
    assert names == [
        ("model", "a@1"),
        ("model", "ab@1"),
        ("model", "b@1"),
        ("reactor", "one"),
        ("strategy", "even"),
    ]
    assert workshop.value("SELECT protected FROM managed_resources WHERE name = 'b@1'")
    assert not workshop.drift().is_found
    roll_back(workshop, 3)
    after = state(workshop, dump)
    assert after[1] == before[1]
    assert after[0]["models"] == before[0]["models"]


def test_a_rollback_to_where_it_is_does_nothing(story):
    with story.project() as project:
        assert not project.plan_rollback(3).has_changes
        with pytest.raises(NotFoundError, match="work has no revision 9"):
            project.plan_rollback(9)


def test_a_rollback_tells_what_was_changed_by_hand(story):
    story.sql("UPDATE models SET description = 'by hand' WHERE model_name = 'b'")
    with story.project() as project:
        plan = project.plan_rollback(2)
    (change,) = [c for c in plan.changes if c.key.name == "b@1"]
    assert change.is_drift
    assert plan_json(plan)["rolled_back_to"] == 2


def test_weights_that_were_collected_are_a_conflict(story):
    roots = story.sql(
        "SELECT encode(root, 'hex') FROM weight_sets WHERE id NOT IN "
        "(SELECT weight_set_id FROM models WHERE weight_set_id IS NOT NULL)"
    )
    assert roots
    story.sql("DELETE FROM model_weight_history")
    story.sql(
        "DELETE FROM weight_set_tensors WHERE weight_set_id NOT IN "
        "(SELECT weight_set_id FROM models WHERE weight_set_id IS NOT NULL)"
    )
    story.sql(
        "DELETE FROM weight_sets WHERE id NOT IN "
        "(SELECT weight_set_id FROM models WHERE weight_set_id IS NOT NULL)"
    )
    with story.project() as project:
        plan = project.plan_rollback(1)
    assert {c.code for c in plan.conflicts} == {"AH064"}
    with pytest.raises(RefusedError, match="that model/a@1 had in revision 1 were collected since"):
        roll_back(story, 1)


def test_a_manifest_that_was_rolled_back_is_known(story):
    roll_back(story, 2)
    plan = story.plan(prune=True)
    with story.project() as project, project.connection() as conn:
        undone = revisions.undone_by(conn, "work", plan.manifest_digest)
    assert undone is not None
    assert undone.revision == 4
    assert any("rolled back" in note for note in plan.notes)


def test_an_alias_is_known_as_of_a_date(workshop):
    models = {"a@1": {"type": "other", "aliases": ["live"]}, "a@2": {"type": "other"}}
    workshop.apply({"models": models})
    workshop.apply({"models": {"a@1": {"type": "other"}, "a@2": {**models["a@1"]}}})
    with workshop.project() as project, project.connection() as conn:
        now, then = aliases.history(conn, "a", "live")
        assert (now.version, now.released_at, then.version) == ("2", None, "1")
        for period in (now, then):
            (found,) = aliases.history(conn, "a", "live", at=period.assigned_at)
            assert found == period


@pytest.fixture
def alias_told(workshop, capsys):
    """What the command tells of an alias that moved in the middle of a second."""
    weights = workshop.weights("a.safetensors", {"t": np.ones(3, np.float32)})
    held = {"type": "other", "weights": weights, "aliases": ["live"]}
    workshop.apply({"models": {"a@1": held, "a@2": {"type": "other"}}})
    workshop.apply({"models": {"a@1": {"type": "other", "weights": weights}, "a@2": held}})
    workshop.sql("UPDATE model_weight_history SET assigned_at = '2026-01-01'")
    workshop.sql("""
        UPDATE model_alias_history SET (assigned_at, released_at) = (
            SELECT lower(r), upper(r) FROM tstzrange(
                CASE version WHEN '1' THEN '2026-06-01 12:00:00.4+00'::timestamptz
                             ELSE '2026-06-02 08:00:00.7+00' END,
                CASE version WHEN '1' THEN '2026-06-02 08:00:00.7+00'::timestamptz END) AS r)""")
    place = ["--project", str(workshop.directory), "--database-url", workshop.url]

    def told(*arguments):
        code = run(["history", "alias", *arguments, *place])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return told


def test_a_time_that_was_told_tells_what_began_then(alias_told, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        _, out, _ = alias_told("a:live")
        header, now, then = (re.split(r"\s{2,}", line.strip()) for line in out.splitlines())
        assert header == ["model", "from", "to", "weights"]
        assert now[:3] == ["a@2", "2026-06-02 08:00:00+0000", "now"]
        assert then[:3] == ["a@1", "2026-06-01 12:00:00+0000", "2026-06-02 08:00:00+0000"]
        assert then[3] == now[3] != "-"
        for at, version in {
            then[1]: "a@1",
            then[2]: "a@2",
            "2026-06-01": "a@1",
            "2026-06-02": "a@2",
            "2026-06-01T12:00": "a@1",
            "2026-06-02T08:00:00.699999": "a@1",
            "2026-06-02T17:00:00+09:00": "a@2",
        }.items():
            assert f"{version} " in alias_told("a:live", "--at", at)[1], at
        for early in ("2026-05-31", "2026-06-01T11", "2026-06-01T12:00:00.3"):
            assert alias_told("a:live", "--at", early)[:2] == (
                0,
                "a:live stood for nothing then.\n",
            )
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_alias_that_never_was_is_an_error_with_a_guess(alias_told):
    for unknown in ("b:live", "a:lvie"):
        code, out, err = alias_told(unknown)
        assert (code, out) == (1, "")
        assert "error[AH055]" in err
        assert "did you mean 'a:live'?" in err


def test_a_rollback_renames_back(workshop):
    """What refers to the row stays with it."""
    workshop.apply({"models": {"a@1": {"type": "other"}}})
    workshop.apply({"models": {"b@1": {"type": "other", "renamed_from": "a"}}})
    workshop.apply({"models": {"c@1": {"type": "other", "renamed_from": "b"}}})
    before = workshop.sql("SELECT id FROM models")
    with workshop.project() as project:
        (change,) = project.plan_rollback(1).changes
    assert (change.action, str(change.old_key)) == ("rename", "model/c@1")
    roll_back(workshop, 1)
    assert workshop.sql("SELECT id, model_name FROM models") == [(*before[0], "a")]


def test_a_rollback_takes_back_what_was_let_go(workshop):
    keep = {"k@1": {"type": "other"}}
    workshop.apply({"models": {**keep, "a@1": {"type": "other", "deletion": "orphan"}}})
    workshop.apply({"models": keep}, prune=True)
    roll_back(workshop, 1)
    assert workshop.sql("SELECT name FROM managed_resources ORDER BY 1") == [("a@1",), ("k@1",)]
    assert not workshop.drift().is_found


def test_what_was_rolled_back_stays_known_whatever_comes_after(story):
    digest = story.plan(prune=True).manifest_digest
    roll_back(story, 2)
    story.apply(targets=["model/new@1"])
    with story.project() as project, project.connection() as conn:
        undone = revisions.undone_by(conn, "work", digest)
    assert undone is not None
    assert undone.revision == 4
