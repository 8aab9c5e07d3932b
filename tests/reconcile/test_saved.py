"""Saved plans: applied exactly, once, or refused with what moved."""

from __future__ import annotations

import json

import numpy as np
import pytest

from arc_halo.cli.main import run
from arc_halo.errors import InvalidInputError, RefusedError, StalePlanError
from arc_halo.fusion.driving import LOCAL
from arc_halo.reconcile.building import Builder
from arc_halo.reconcile.markdown import plan_markdown
from arc_halo.reconcile.plan_reading import plan_of
from arc_halo.reconcile.progress import Silent
from arc_halo.reconcile.report import plan_lines
from arc_halo.reconcile.saved import SavedPlan, read_plan, save_plan

MODELS = {"a@1": {"type": "other"}, "b@1": {"type": "other", "description": "two"}}


@pytest.fixture
def saved(workshop, tmp_path):
    """Saves the plan of the workshop's manifest as it is now; reads it back."""

    def save(manifest=None, **options) -> SavedPlan:
        if manifest is not None:
            workshop.write(manifest)
        path = tmp_path / "plan.json"
        save_plan(path, workshop.plan(**options), None)
        return read_plan(path)

    return save


def apply_saved(workshop, saved):
    with workshop.project() as project:
        return project.apply(project.plan_again(saved))


def merged(workshop):
    """Two models with weights, and one that is fused from them."""
    for name, value in (("a", 1), ("b", 2)):
        workshop.weights(f"{name}.safetensors", {"t": np.full((2, 3), value, np.float32)})
    models = {f"{n}@1": {"type": "other", "weights": f"{n}.safetensors"} for n in "ab"}
    blend = {
        "type": "merge",
        "strategy": "linear",
        "members": [{"model": "a@1"}, {"model": "b@1"}],
        "produces": {"model": "blend", "version": "1"},
    }
    return {"models": models, "reactors": {"blend": blend}}


def build_all(workshop):
    """As an apply that is killed before it commits leaves the database."""
    with workshop.project() as project:
        Builder(project.weights, project.plan(), project.plugins, LOCAL, Silent()).run()


def test_a_saved_plan_is_applied_exactly(workshop, saved):
    plan = saved({"models": MODELS})
    report = apply_saved(workshop, plan)
    assert report.plan_digest.hex() == plan.document["plan_digest"]
    assert (
        workshop.value("SELECT encode(plan_digest, 'hex') FROM revisions")
        == (plan.document["plan_digest"])
    )


def test_a_saved_plan_is_shown_as_it_was_made(workshop, saved, tmp_path, monkeypatch, capsys):
    manifest = merged(workshop)
    shown = []
    weights = {"type": "other", "weights": "a.safetensors"}
    workshop.apply({"models": {**MODELS, "a@1": weights, "gone@1": weights}})
    workshop.sql("UPDATE models SET description = 'by hand' WHERE model_name = 'a'")
    manifest["models"]["moved@1"] = {"type": "other", "renamed_from": "b"}
    del manifest["models"]["b@1"], manifest["reactors"]
    for options in ({"prune": True}, {"prune": False}, {"targets": ("model/a*",)}):
        document = saved(manifest, **options).document
        plan = workshop.plan(**options)
        shown.append({change.action for change in plan.changes})
        assert list(plan_lines(plan_of(document))) == list(plan_lines(plan))
        assert plan_markdown(plan_of(document)) == plan_markdown(plan)
    assert {"update", "rename", "delete"} <= set().union(*shown)
    document = saved(merged(workshop)).document
    assert list(plan_lines(plan_of(document))) == list(plan_lines(workshop.plan()))
    document["resource_changes"][0]["build"] = {}
    with pytest.raises(InvalidInputError, match="does not tell what is to be shown"):
        plan_of(document)
    monkeypatch.chdir(tmp_path)  # no project, no database
    assert run(["plan", "--show", "plan.json", "--detailed-exitcode"]) == 2
    text = capsys.readouterr().out
    assert "fused by linear in reactor/blend, weights known after build" in text
    assert text.splitlines()[-1].startswith("Plan: ")
    assert run(["plan", "--show", "plan.json", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "plan.json").read_text())
    assert run(["plan", "--show", "plan.json", "--prune"]) == 64


def test_a_plan_is_applied_once(workshop, saved):
    plan = saved({"models": MODELS})
    apply_saved(workshop, plan)
    with pytest.raises(StalePlanError, match=r"^\S+ was applied already, as revision 1 by \S+ at "):
        apply_saved(workshop, plan)


def test_another_manifest_is_told(workshop, saved):
    plan = saved({"models": MODELS})
    workshop.write({"models": {**MODELS, "c@1": {"type": "other"}}})
    with pytest.raises(
        StalePlanError, match=r"the manifest is another.*model/c@1 would be changed"
    ):
        apply_saved(workshop, plan)
    assert workshop.value("SELECT count(*) FROM models") == 0


def test_an_apply_in_between_is_told_with_what_it_touched(workshop, saved):
    workshop.apply({"models": MODELS})
    later = {**MODELS, "a@1": {"type": "other", "description": "one"}}
    plan = saved({"models": later})
    workshop.apply({"models": {**MODELS, "a@1": {"type": "other", "description": "uno"}}})
    workshop.write({"models": later})
    with pytest.raises(StalePlanError, match=r"from revision 1 to 2.*which changed model/a@1"):
        apply_saved(workshop, plan)


def test_a_row_changed_by_hand_in_between_is_told(workshop, saved):
    workshop.apply({"models": MODELS})
    plan = saved({"models": {**MODELS, "c@1": {"type": "other"}}})
    workshop.sql("UPDATE models SET description = 'by hand' WHERE model_name = 'b'")
    with pytest.raises(StalePlanError, match="now: model/b@1 was changed outside of apply"):
        apply_saved(workshop, plan)


def test_a_plan_that_was_edited_is_not_the_plan(workshop, saved, tmp_path):
    document = saved({"models": MODELS}).document
    document["resource_changes"][0]["change"]["after"]["description"] = "better"
    with pytest.raises(StalePlanError, match="model/a@1 would be changed otherwise"):
        apply_saved(workshop, SavedPlan(label="plan.json", document=document))


def test_a_plan_is_applied_after_an_apply_of_it_was_interrupted(workshop, saved):
    plan = saved(merged(workshop))
    build_all(workshop)
    apply_saved(workshop, plan)
    with pytest.raises(StalePlanError, match="was applied already, as revision 1"):
        apply_saved(workshop, plan)


@pytest.mark.parametrize("field", ["root", "recipe_key"])
def test_a_plan_of_other_fused_weights_is_not_the_plan(workshop, saved, field):
    workshop.write(merged(workshop))
    build_all(workshop)
    document = saved().document
    (fused,) = (c for c in document["resource_changes"] if "fuse" in (c["build"] or {}))
    holder = fused["build"] if field == "recipe_key" else fused["change"]["after"]["weights"]
    assert holder[field]
    holder[field] = holder[field][:-8] + "00000000"
    with pytest.raises(StalePlanError, match="model/blend@1 would be changed otherwise"):
        apply_saved(workshop, SavedPlan(label="plan.json", document=document))


def test_other_weights_deep_inside_of_a_merge_are_told(workshop, saved, open_workshop):
    """Of another project's model, which is fused with one that is still to be fused itself."""

    def foreign(value):
        weights = other.weights("o.safetensors", {"t": np.full((2, 3), value, np.float32)})
        model = {"type": "other", "weights": weights, "aliases": ["champion"]}
        other.write({"project": "theirs", "models": {"o@1": model}})
        other.apply()

    other = open_workshop("theirs")
    foreign(5)
    manifest = merged(workshop)
    manifest["reactors"]["outer"] = {
        "type": "merge",
        "strategy": "linear",
        "members": [{"model": "o:champion"}, {"model": "blend@1"}],
        "produces": {"model": "outer", "version": "1"},
    }
    plan = saved(manifest)
    build_all(workshop)
    with workshop.project() as project:
        project.plan_again(plan)
    foreign(77)
    with pytest.raises(StalePlanError, match="model/outer@1 would be changed otherwise"):
        apply_saved(workshop, plan)


def test_what_is_no_plan_is_refused_and_not_overwritten(workshop, tmp_path):
    path = tmp_path / "arc_halo.json"
    for text in ("no JSON", "[]", "{}", '{"format_version": "1.0"}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InvalidInputError, match="is no plan of Arc-Halo"):
            read_plan(path)
        workshop.write({"models": MODELS})
        with pytest.raises(RefusedError, match="is there already") as caught:
            save_plan(path, workshop.plan(), None)
        assert (caught.value.error_code, caught.value.exit_code) == ("AH014", 5)
        assert path.read_text() == text


def test_a_plan_of_another_format_is_told_apart(saved, tmp_path):
    document = saved({"models": MODELS}).document
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**document, "format_version": "2.0"}))
    with pytest.raises(InvalidInputError, match=r"format version 2\.0, this program reads 1\.0"):
        read_plan(path)


def test_another_environment_and_another_project_are_told(workshop, saved):
    plan = saved({"models": MODELS})
    for field, said in (("environment", "prod then, none here"), ("project", "of the project")):
        document = {**plan.document, field: "prod"}
        with pytest.raises(StalePlanError, match=said):
            apply_saved(workshop, SavedPlan(label="plan.json", document=document))


def test_a_plan_keeps_what_it_was_limited_to(workshop, saved):
    plan = saved({"models": MODELS}, targets=["model/a@1"])
    report = apply_saved(workshop, plan)
    assert [str(change.key) for change in report.plan.changes] == ["model/a@1"]


def test_the_file_of_a_plan_is_for_its_owner(saved, tmp_path):
    saved({"models": MODELS})
    assert (tmp_path / "plan.json").stat().st_mode & 0o777 == 0o600
