"""Trainings as resources: created, changed, kept and deleted like the others."""

from __future__ import annotations

from typing import Any

import pytest

from arc_halo.errors import RefusedError
from arc_halo.reconcile.changes import Plan
from arc_halo.reconcile.markdown import plan_markdown
from arc_halo.reconcile.plan_document import plan_json
from arc_halo.reconcile.report import plan_lines
from arc_halo.reconcile.showing import describe
from arc_halo.store import trainings
from arc_halo.store.connection import connect

Json = dict[str, Any]
SESSION = """
INSERT INTO training_sessions (model_name, model_version, training_name)
VALUES ('story', '1', 'tuning')
"""


@pytest.fixture
def manifest(llama: Json) -> Json:
    return {
        "models": {"story@1": {"architecture": {**llama, "max_position_embeddings": 128}}},
        "training": {
            "tuning": {
                "model": "story",
                "total_epochs": 3,
                "config": {"lr": 3e-4},
                "metrics": {"best": "eval/loss"},
                "retention": {"keep_last": 3, "keep_best": 1},
                "tags": {"team": "poetry"},
            }
        },
    }


def actions(plan: Plan) -> list[str]:
    return [f"{change.action} {change.key}" for change in plan.changes]


def texts(plan: Plan) -> list[str]:
    return [line.text for line in plan_lines(plan)]


def found(workshop: Any, name: str = "tuning") -> Any:
    with connect(workshop.url) as conn:
        return trainings.find(conn, name)


def test_a_training_is_created_after_its_model_and_then_there_is_nothing_to_do(workshop, manifest):
    report = workshop.apply(manifest)
    assert actions(report.plan) == ["create model/story@1", "create training/tuning"]
    assert not workshop.plan().has_changes
    assert found(workshop).model_name == "story"


def test_fields_are_changed_in_place_and_told_one_by_one(workshop, manifest):
    workshop.apply(manifest)
    before = found(workshop).id
    manifest["training"]["tuning"] |= {"total_epochs": 5, "config": {"lr": 1e-4}}
    manifest["training"]["tuning"]["retention"]["keep_last"] = 4
    (change,) = workshop.apply(manifest).plan.changes
    assert [(f.path, f.before, f.after) for f in change.fields] == [
        ("total_epochs", 3, 5),
        ("config.lr", 3e-4, 1e-4),
        ("retention.keep_last", 3, 4),
    ]
    assert found(workshop).id == before
    assert found(workshop).config == {"lr": 1e-4}


def test_what_is_taken_out_goes_back_to_nothing(workshop, manifest):
    workshop.apply(manifest)
    manifest["training"]["tuning"] = {"model": "story"}
    workshop.apply(manifest)
    assert (found(workshop).retention, found(workshop).best_metric) == (None, None)
    assert not workshop.plan().has_changes


def test_a_training_keeps_its_id_when_it_or_its_model_is_renamed(workshop, manifest):
    workshop.apply(manifest)
    before = found(workshop).id
    story = manifest["models"].pop("story@1")
    manifest["models"]["tale@1"] = {**story, "renamed_from": "story"}
    tuning = manifest["training"].pop("tuning")
    manifest["training"]["polish"] = {**tuning, "model": "tale", "renamed_from": "tuning"}
    report = workshop.apply(manifest)
    assert actions(report.plan) == ["rename model/tale@1", "rename training/polish"]
    assert (found(workshop, "polish").id, found(workshop, "polish").model_name) == (before, "tale")
    assert not workshop.plan().has_changes


def test_sessions_stay_and_keep_the_name_when_their_training_goes(workshop, manifest):
    workshop.apply(manifest)
    workshop.sql(SESSION)
    del manifest["training"]
    assert actions(workshop.apply(manifest, prune=True).plan) == ["delete training/tuning"]
    assert workshop.sql("SELECT training_name FROM training_sessions") == [("tuning",)]
    assert found(workshop) is None


def test_a_training_that_left_the_manifest_is_kept_without_prune(workshop, manifest):
    workshop.apply(manifest)
    del manifest["training"]
    workshop.write(manifest)
    plan = workshop.plan()
    assert [str(orphan.key) for orphan in plan.orphans] == ["training/tuning"]
    assert not plan.has_changes


def test_a_protected_training_is_not_deleted(workshop, manifest):
    manifest["training"]["tuning"]["protected"] = True
    workshop.apply(manifest)
    del manifest["training"]
    with pytest.raises(RefusedError, match="training/tuning is protected"):
        workshop.apply(manifest, prune=True)


def test_a_training_that_is_let_go_belongs_to_nobody_and_is_listed(workshop, manifest):
    manifest["training"]["tuning"]["deletion"] = "orphan"
    workshop.apply(manifest)
    training = manifest.pop("training")
    assert actions(workshop.apply(manifest, prune=True).plan) == ["forget training/tuning"]
    assert found(workshop) is not None
    workshop.write({**manifest, "training": training})
    (conflict,) = workshop.plan().conflicts
    assert conflict.message == "training/tuning exists, and no project manages it"


def test_a_model_goes_with_its_training_and_not_before_it(workshop, manifest):
    workshop.apply(manifest)
    workshop.write({})
    plan = workshop.plan(prune=True)
    assert actions(plan) == ["delete training/tuning", "delete model/story@1"]
    workshop.apply({}, prune=True)
    assert workshop.value("SELECT count(*) FROM models") == 0


def test_a_model_that_another_projects_training_names_is_not_deleted(
    workshop, open_workshop, manifest
):
    manifest["models"]["story@1"]["aliases"] = ["live"]
    workshop.apply({"models": manifest["models"]})
    other = open_workshop("other")
    other.apply({"project": "other", "training": {"tuning": {"model": "story:live"}}})
    workshop.write({})
    (conflict,) = workshop.plan(prune=True).conflicts
    assert conflict.message == "model/story@1 is used by training/tuning"
    assert conflict.hint == "delete or change that training first"


def test_a_training_may_leave_its_model_in_the_same_apply(workshop, manifest):
    workshop.apply(manifest)
    manifest["models"] = {"tale@1": {}}
    manifest["training"]["tuning"]["model"] = "tale"
    assert actions(workshop.apply(manifest, prune=True).plan) == [
        "create model/tale@1",
        "update training/tuning",
        "delete model/story@1",
    ]


def test_destroy_takes_trainings_too(workshop, manifest):
    workshop.apply(manifest)
    workshop.destroy()
    assert workshop.value("SELECT count(*) FROM training_definitions") == 0


def test_a_plan_says_what_gradient_checkpointing_saves(workshop, manifest):
    workshop.apply({"models": manifest["models"]})
    manifest["training"]["tuning"]["gradient_checkpointing"] = {"batch_size": 2}
    workshop.write(manifest)
    plan = workshop.plan()
    said = (
        "2 of 2 layers computed again: about 135 kB of activations at the peak, 16.4 kB after the "
        "forward pass, 254 kB without, for 2 x 128 tokens in F32"
    )
    assert texts(plan)[:2] == ["+ training/tuning", f"    {said}"]
    assert said in plan_markdown(plan)
    (change,) = plan_json(plan)["resource_changes"]
    assert change["remark"] == said


def test_a_plan_says_it_again_only_where_it_changes(workshop, manifest):
    manifest["training"]["tuning"]["gradient_checkpointing"] = {}
    workshop.apply(manifest)
    manifest["training"]["tuning"]["notes"] = "again"
    workshop.write(manifest)
    assert not any("computed again" in text for text in texts(workshop.plan()))
    manifest["training"]["tuning"]["gradient_checkpointing"] = {"layers": {"every": 2}}
    workshop.write(manifest)
    assert any("1 of 2 layers computed again" in text for text in texts(workshop.plan()))


def test_a_plan_says_why_nothing_is_estimated(workshop):
    training = {"tuning": {"model": "odd", "gradient_checkpointing": {}}}
    workshop.write({"models": {"odd@1": {"type": "other"}}, "training": training})
    assert (
        "    what gradient checkpointing saves is not known: "
        "the model's config does not say how many layers it has"
    ) in texts(workshop.plan())


def test_show_tells_the_document_its_sessions_and_what_is_saved(workshop, manifest):
    manifest["training"]["tuning"]["gradient_checkpointing"] = {"layers": [0]}
    workshop.apply(manifest)
    workshop.sql(SESSION)
    with connect(workshop.url) as conn:
        facts = describe(conn, "training", "tuning")
        assert describe(conn, "training", "other") is None
    assert facts is not None
    assert (facts["project"], facts["sessions"]) == ("work", 1)
    assert facts["recomputing"].startswith("1 of 2 layers computed again: about ")
    assert facts["document"]["metrics"] == {"best": "eval/loss", "mode": "min"}
