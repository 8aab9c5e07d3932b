"""Adopting: what nobody manages, or another project, becomes this project's as it stands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arc_halo.cli.main import run
from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError, StalePlanError

MODEL = {"models": {"a@1": {"type": "other", "description": "ours"}}}


def adopt(workshop, address, **options):
    with workshop.project() as project:
        return project.adopt(address, **options)


@pytest.fixture
def unmanaged(workshop):
    workshop.sql(
        "INSERT INTO models (model_name, version, model_type, architecture_config) "
        "VALUES ('a', '1', 'other', '{}')"
    )
    workshop.write(MODEL)
    return workshop


def test_what_nobody_manages_is_taken_as_it_stands(unmanaged):
    workshop = unmanaged
    before = workshop.sql("SELECT * FROM models")
    (conflict,) = workshop.plan().conflicts
    assert conflict.hint is not None
    assert "arc-halo adopt model/a@1" in conflict.hint
    assert adopt(workshop, "model/a@1").revision == 1
    assert workshop.sql("SELECT * FROM models") == before
    (change,) = workshop.plan().changes
    assert [field.path for field in change.fields] == ["description"]
    assert not workshop.drift().is_found
    workshop.apply()
    assert workshop.value("SELECT description FROM models") == "ours"


def test_another_project_is_told_of_its_loss(workshop, open_workshop):
    workshop.apply({"models": {"a@1": {"type": "other", "ignore": ["tags"], "deletion": "orphan"}}})
    plan = workshop.plan()
    other = open_workshop("other")
    other.write({"project": "other", **MODEL})
    with pytest.raises(RefusedError, match="belongs to the project 'work'"):
        adopt(other, "model/a@1")
    assert adopt(other, "model/a@1", may_take=True).owner == "work"
    assert workshop.sql(
        "SELECT project, action FROM revision_changes ORDER BY project, revision"
    ) == [("other", "adopt"), ("work", "create"), ("work", "forget")]
    kept = other.sql("SELECT deletion, ignored FROM managed_resources WHERE project = 'other'")
    assert kept == [("orphan", ["tags"])]
    (conflict,) = workshop.plan().conflicts
    assert conflict.message == "model/a@1 belongs to the project 'other'"
    workshop.write({"models": {"b@1": {"type": "other"}}})
    stale = replace(workshop.plan(), base_revision=plan.base_revision)
    with workshop.project() as project, pytest.raises(StalePlanError):
        project.apply(stale)


def test_what_cannot_be_adopted_is_refused(unmanaged):
    workshop = unmanaged
    with pytest.raises(InvalidInputError, match="no address of a resource"):
        adopt(workshop, "a@1")
    with pytest.raises(NotFoundError, match="does not declare model/b@1"):
        adopt(workshop, "model/b@1")
    workshop.write({"models": {"b@1": {"type": "other"}}})
    with pytest.raises(NotFoundError, match="there is no model/b@1 in the database"):
        adopt(workshop, "model/b@1")


def test_of_what_is_the_projects_already_there_is_nothing_to_do(workshop, monkeypatch, capsys):
    revision = workshop.apply(MODEL).revision
    again = adopt(workshop, "model/a@1")
    assert (again.is_new, again.owner, again.revision) == (False, "work", revision)
    monkeypatch.chdir(workshop.directory)
    assert run(["adopt", "model/a@1", "--database-url", workshop.url]) == 0
    assert "Nothing to do: model/a@1 is of work already." in capsys.readouterr().out
    assert workshop.value("SELECT max(revision) FROM revisions") == revision


def test_what_another_project_protects_is_not_taken(workshop, open_workshop):
    workshop.apply({"models": {"a@1": {"type": "other", "protected": True}}})
    other = open_workshop("other")
    other.write({"project": "other", **MODEL})
    with pytest.raises(RefusedError, match="is protected by the project 'work'"):
        adopt(other, "model/a@1", may_take=True)


def test_a_rollback_lets_go_of_what_was_adopted(unmanaged):
    workshop = unmanaged
    workshop.write({"models": {"b@1": {"type": "other"}}})
    workshop.apply()
    workshop.write({"models": {"b@1": {"type": "other"}, **MODEL["models"]}})
    adopt(workshop, "model/a@1")
    with workshop.project() as project:
        plan = project.plan_rollback(1)
        assert [(c.action, c.key.name) for c in plan.changes] == [("forget", "a@1")]
        project.apply(plan)
    assert workshop.value("SELECT count(*) FROM models WHERE model_name = 'a'") == 1
