"""What an apply does not do by accident, and what it tries without doing it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import psycopg
import pytest
import yaml

from arc_halo import Project
from arc_halo.errors import (
    ArcHaloError,
    DatabaseError,
    LockTimeoutError,
    RefusedError,
    SchemaMismatchError,
)
from arc_halo.reconcile.limits import Limits
from arc_halo.reconcile.report import plan_lines, plan_summary
from arc_halo.reconcile.saved import read_plan, save_plan
from arc_halo.store import migrate


def fleet(count, **fields):
    return {"models": {f"m{i}@1": {"type": "other", **fields} for i in range(count)}}


def texts(plan):
    return [line.text for line in plan_lines(plan)]


def test_more_deletions_than_usual_are_refused(workshop):
    workshop.apply(fleet(30))
    workshop.write(fleet(19))
    with pytest.raises(RefusedError, match="deletes 11 resources, at most 10 are allowed"):
        workshop.apply(prune=True, limits=Limits())
    workshop.apply(prune=True, limits=Limits(max_deletes=11))
    assert workshop.value("SELECT count(*) FROM models") == 19


def test_of_many_a_fifth_may_go(workshop):
    workshop.apply(fleet(60))
    workshop.apply(fleet(48), prune=True, limits=Limits())
    assert workshop.value("SELECT count(*) FROM models") == 48


def test_an_empty_manifest_empties_nothing_unless_asked(workshop):
    workshop.apply(fleet(2))
    workshop.write({})
    with pytest.raises(RefusedError, match="declares nothing, and work manages 2"):
        workshop.apply(prune=True, limits=Limits())
    with pytest.raises(RefusedError, match="declares nothing"):
        workshop.apply(prune=True, limits=Limits(), targets=["model/*"])
    workshop.apply(prune=True, limits=Limits(allow_empty=True))
    assert workshop.value("SELECT count(*) FROM models") == 0


def test_an_empty_manifest_lets_nothing_go_unless_asked(workshop):
    workshop.apply(fleet(1, deletion="orphan"))
    workshop.write({})
    with pytest.raises(RefusedError, match="declares nothing"):
        workshop.apply(prune=True, limits=Limits())


def test_protection_cannot_be_lifted_and_made_use_of_at_once(workshop):
    first = workshop.weights("a.safetensors", {"t": np.ones(3, np.float32)})
    model = {"type": "other", "weights": first, "protected": True}
    workshop.apply({"models": {"a@1": model}})
    workshop.weights("a.safetensors", {"t": np.zeros(3, np.float32)})
    for protected in (True, False):
        with pytest.raises(RefusedError, match="protected, and its weights would be replaced"):
            workshop.apply({"models": {"a@1": {**model, "protected": protected}}})
    workshop.weights("a.safetensors", {"t": np.ones(3, np.float32)})
    workshop.apply({"models": {"a@1": {**model, "protected": False}}})
    workshop.weights("a.safetensors", {"t": np.zeros(3, np.float32)})
    (change,) = workshop.plan().changes
    assert change.action == "replace"
    workshop.apply()


def test_a_deletion_tells_what_goes_with_it(workshop):
    weights = workshop.weights("a.safetensors", {"t": np.ones(256, np.float32)})
    workshop.apply(
        {"models": {"a@1": {"type": "other", "weights": weights, "aliases": ["live", "new"]}}}
    )
    workshop.write({"models": {"b@1": {"type": "other"}}})
    plan = workshop.plan(prune=True)
    title, line, *_ = texts(plan)
    assert title == "Deletions: 1 resource, with 1.0 kB of weights."
    assert line.startswith("- model/a@1 ")
    assert line.endswith("1.0 kB, 1 weight set, 2 aliases go too")


def test_what_is_lost_comes_first_and_drift_last(workshop):
    workshop.apply(fleet(3))
    workshop.sql("UPDATE models SET description = 'by hand' WHERE model_name = 'm1'")
    manifest = fleet(2)
    manifest["models"]["m0@1"]["description"] = "new"
    manifest["models"]["z@1"] = {"type": "other"}
    workshop.write(manifest)
    symbols = [text[0] for text in texts(workshop.plan(prune=True)) if text[0] in "-~+C"]
    assert symbols == ["-", "~", "+", "C", "~"]


def test_a_dry_run_does_it_all_and_leaves_nothing(workshop):
    weights = workshop.weights("a.safetensors", {"t": np.ones(3, np.float32)})
    manifest = fleet(2)
    manifest["models"]["m0@1"]["weights"] = weights
    workshop.write(manifest)
    with workshop.project() as project:
        report = project.try_plan(project.plan())
    assert (report.revision, report.is_dry_run) == (1, True)
    for table in ("models", "revisions", "projects", "weight_sets"):
        assert workshop.value(f"SELECT count(*) FROM {table}") == 0


def test_a_dry_run_meets_the_constraints(workshop):
    workshop.write(fleet(1))
    workshop.sql("ALTER TABLE models ADD CONSTRAINT no_m CHECK (model_name <> 'm0') NOT VALID")
    with workshop.project() as project, pytest.raises(DatabaseError, match="no_m"):
        project.try_plan(project.plan())


def test_a_dry_run_meets_deferred_constraints_and_policies(workshop):
    workshop.sql("CREATE TABLE ticket (model text PRIMARY KEY)")
    workshop.sql(
        "ALTER TABLE models ADD CONSTRAINT ticket FOREIGN KEY (model_name) REFERENCES ticket "
        "DEFERRABLE INITIALLY DEFERRED"
    )
    workshop.write(fleet(1))
    with workshop.project() as project, pytest.raises(ArcHaloError, match="ticket"):
        project.try_plan(project.plan())


def test_a_dry_run_migrates_too_and_undoes_it(open_workshop, empty_database):
    workshop = replace(open_workshop(), url=empty_database)
    workshop.write(fleet(2))
    with workshop.project() as project:
        report = project.try_plan(project.plan())
    assert (report.revision, report.plan.counts["create"]) == (1, 2)
    assert report.plan.migrations
    assert workshop.value("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0


def test_a_plan_refuses_the_tables_of_somebody_else_as_its_apply_would(
    open_workshop, empty_database
):
    workshop = replace(open_workshop(), url=empty_database)
    workshop.write(fleet(2))
    workshop.sql("CREATE TABLE models (a int)")
    with workshop.project() as project:
        for refused in (project.plan, project.migrate):
            with pytest.raises(SchemaMismatchError, match="'models' that Arc-Halo did not make"):
                refused()


def test_a_dry_run_plans_anew_what_only_a_migrated_database_can_tell(
    workshop, tmp_path, monkeypatch
):
    workshop.apply(fleet(2))
    with workshop.project() as project, project.direct_connection() as conn:
        *_, before, last = (each.id for each in migrate.status(conn))
        migrate.down(conn, to=before)
    workshop.write(fleet(3))
    with workshop.project() as project:
        plan = project.plan()
        report = project.try_plan(plan)
        assert (plan.migrations, plan.changes) == ((last,), ())
        assert plan_summary(plan) == "Plan: 1 migration to apply."
        assert [str(change.key) for change in report.plan.changes] == ["model/m2@1"]
        assert report.revision == 2
        assert project.plan().migrations == (last,)
        # A saved plan that does not know of it would not create it.
        save_plan(tmp_path / "plan.json", plan, None)
        saved = read_plan(tmp_path / "plan.json")
        assert project.try_plan(plan, saved=saved).plan.changes == ()
        # While migrated tables are held, nobody is waited for.
        monkeypatch.setattr("arc_halo.project.MIGRATING_LOCK_SECONDS", 0.1)
        with psycopg.connect(workshop.url) as other:
            other.execute("SELECT FROM projects FOR UPDATE")
            with pytest.raises(LockTimeoutError):
                project.try_plan(plan)
    assert workshop.value("SELECT count(*) FROM models") == 2


def test_a_model_that_loses_its_weights_counts_as_a_deletion(workshop):
    weights = workshop.weights("a.safetensors", {"t": np.ones(3, np.float32)})
    workshop.apply({"models": {"a@1": {"type": "other", "weights": weights}}})
    workshop.write({"models": {"a@1": {"type": "other"}}})
    plan = workshop.plan()
    assert [str(change.key) for change in plan.deletions] == ["model/a@1"]
    first, line, *_ = texts(plan)
    assert first == "Deletions: 1 resource."
    assert line.startswith("-/+ model/a@1")
    assert line.endswith("its weights are taken away")
    with pytest.raises(RefusedError, match="the plan deletes 1 resource, at most 0"):
        workshop.apply(limits=Limits(max_deletes=0))
    # Other weights are no loss: what they were is kept for a while, and what they become is said.
    other = workshop.weights("b.safetensors", {"t": np.zeros(3, np.float32)})
    workshop.write({"models": {"a@1": {"type": "other", "weights": other}}})
    assert workshop.plan().deletions == ()


def test_an_environment_beside_another_in_one_database_is_told(workshop):
    workshop.write(fleet(1))
    (workshop.directory / "overlays").mkdir()
    for name in ("dev", "prod"):
        overlay = {"models": {"m0@1": {"description": name}}}
        (workshop.directory / "overlays" / f"{name}.yaml").write_text(yaml.safe_dump(overlay))

    def plan(env):
        with Project(workshop.directory, database_url=workshop.url, environ={}, env=env) as project:
            made = project.plan()
            project.apply(made)
            return made

    assert plan("dev").notes == ()
    said = "revision 1 was of environment dev, this is of environment prod: one database is for one"
    assert plan("prod").notes == (said,)
    assert plan("prod").notes == ()
    workshop.sql("INSERT INTO fusion_strategies (name, uses) VALUES ('odd', 'linear')")
    manifest = {**fleet(1), "strategies": {"odd": {"uses": "linear", "description": "new"}}}
    workshop.write(manifest)
    with workshop.project() as project:
        project.adopt("strategy/odd")
    assert plan("prod").notes == ()
    said = "revision 4 was of environment prod, this is of no environment: one database is for one"
    assert plan(None).notes == (said,)
