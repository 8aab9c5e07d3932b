"""Apply against PostgreSQL: what it changes, what it refuses to touch, and what it records."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_halo.errors import (
    ArcHaloError,
    IncompatibleModelsError,
    ManifestError,
    RefusedError,
    StalePlanError,
    WeightsError,
)
from arc_halo.reconcile.changes import Plan

Opened = Callable[..., Any]
Json = dict[str, Any]


def tensors(seed: int, count: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {f"t{index}": random.random((3, 2), np.float32) for index in range(count)}


def models(workshop: Any, *names: str) -> Json:
    """A model with weights for each name."""
    return {
        f"{name}@1": {
            "type": "other",
            "weights": workshop.weights(f"{name}.safetensors", tensors(index)),
        }
        for index, name in enumerate(names)
    }


def merge(output: str, *members: str, **fields: Any) -> Json:
    listed = [{"model": name} for name in members]
    produces = {"model": output, "version": "1"}
    return {
        "type": "merge",
        "strategy": "linear",
        "members": listed,
        "produces": produces,
        **fields,
    }


def actions(plan: Plan) -> list[str]:
    return [f"{change.action} {change.key}" for change in plan.changes]


def root_of(workshop: Any, model: str) -> str | None:
    name, _, version = model.partition("@")
    return workshop.value(
        """
        SELECT encode(sets.root, 'hex') FROM models
        LEFT JOIN weight_sets AS sets ON sets.id = weight_set_id
        WHERE model_name = %s AND version = %s
        """,
        name,
        version,
    )


def snapshot(workshop: Any) -> list[Any]:
    """Everything visible that an apply may change."""
    return [
        workshop.sql(f"SELECT * FROM {table} ORDER BY 1, 2")
        for table in (
            "projects", "managed_resources", "revisions", "revision_changes", "models",
            "model_aliases", "model_weights", "fusion_strategies", "cognitive_fusion_reactors",
            "reactor_models", "fusion_operations",
        )
    ]  # fmt: skip


# What it does


def test_everything_declared_is_created_and_then_there_is_nothing_to_do(workshop: Any) -> None:
    manifest = {
        "models": models(workshop, "a", "b"),
        "strategies": {"even": {"uses": "linear"}},
        "reactors": {"story": merge("story", "a", "b", strategy="even")},
    }
    report = workshop.apply(manifest)
    assert actions(report.plan) == [
        "create strategy/even",
        "create model/a@1",
        "create model/b@1",
        "create model/story@1",
        "create reactor/story",
    ]
    assert report.revision == 1
    plan = workshop.plan()
    assert not plan.has_changes
    assert (plan.base_revision, plan.unchanged_count) == (1, 5)


def test_a_manifest_that_declares_nothing_changes_nothing(workshop: Any) -> None:
    workshop.write({})
    assert not workshop.plan().has_changes


def test_a_field_is_updated_in_place(workshop: Any) -> None:
    manifest: Json = {"models": {"a@1": {"type": "other", "description": "old"}}}
    workshop.apply(manifest)
    before = workshop.value("SELECT id FROM models")
    manifest["models"]["a@1"]["description"] = "new"
    (change,) = workshop.apply(manifest).plan.changes
    assert [(f.path, f.before, f.after) for f in change.fields] == [("description", "old", "new")]
    assert workshop.sql("SELECT id, description FROM models") == [(before, "new")]


@pytest.mark.parametrize(("old", "new"), [(1, True), (None, "absent"), ("absent", None)])
def test_a_change_that_only_json_sees_reaches_the_database(
    workshop: Any, old: object, new: object
) -> None:
    def manifest(value: object) -> Json:
        architecture = {} if value == "absent" else {"tie": value}
        return {"models": {"a@1": {"architecture": architecture}}}

    workshop.apply(manifest(old))
    workshop.apply(manifest(new))
    expected = {} if new == "absent" else {"tie": new}
    found = workshop.value("SELECT architecture_config FROM models")
    assert found == expected
    assert [type(v) for v in found.values()] == [type(v) for v in expected.values()]


def test_a_model_keeps_its_id_weights_and_history_when_it_is_renamed(workshop: Any) -> None:
    workshop.apply({"models": models(workshop, "a")})
    (before,) = workshop.sql("SELECT id, weight_set_id FROM models")
    renamed = {"b@1": {**models(workshop, "a")["a@1"], "renamed_from": "a"}}
    assert actions(workshop.apply({"models": renamed}).plan) == ["rename model/b@1"]
    assert workshop.sql("SELECT id, weight_set_id FROM models WHERE model_name = 'b'") == [before]
    assert workshop.sql("SELECT name FROM managed_resources") == [("b@1",)]
    assert not workshop.plan(prune=True).has_changes


def test_an_alias_goes_with_its_renamed_model_in_the_history_too(workshop: Any) -> None:
    workshop.apply({"models": {"a@1": {"aliases": ["live"]}}})
    workshop.apply({"models": {"b@1": {"aliases": ["live"], "renamed_from": "a"}}})
    assert workshop.sql("SELECT model_name, alias FROM model_aliases") == [("b", "live")]
    current = "SELECT model_name FROM model_alias_history WHERE released_at IS NULL"
    assert workshop.sql(current) == [("b",)]


def test_strategies_and_reactors_are_renamed_too(workshop: Any) -> None:
    manifest: Json = {
        "models": models(workshop, "a", "b"),
        "strategies": {"even": {"uses": "linear"}},
        "reactors": {"story": merge("story", "a", "b", strategy="even")},
    }
    workshop.apply(manifest)
    ids = "SELECT id FROM fusion_strategies UNION SELECT id FROM cognitive_fusion_reactors"
    before = sorted(workshop.sql(ids))
    manifest["strategies"] = {"level": {"uses": "linear", "renamed_from": "even"}}
    manifest["reactors"] = {
        "tale": merge("story", "a", "b", strategy="level", renamed_from="story")
    }
    plan = workshop.apply(manifest).plan
    assert actions(plan)[0] == "rename strategy/level"
    assert actions(plan)[-1] == "rename reactor/tale"
    assert sorted(workshop.sql(ids)) == before
    assert not workshop.plan(prune=True).has_changes


def test_what_left_the_manifest_is_listed_and_kept(workshop: Any) -> None:
    workshop.apply({"models": models(workshop, "a", "b")})
    workshop.write({"models": models(workshop, "a")})
    plan = workshop.plan()
    assert not plan.has_changes
    assert [str(orphan.key) for orphan in plan.orphans] == ["model/b@1"]


def test_prune_deletes_what_left_the_manifest(workshop: Any) -> None:
    workshop.apply({"models": models(workshop, "a", "b")})
    report = workshop.apply({"models": models(workshop, "a")}, prune=True)
    assert actions(report.plan) == ["delete model/b@1"]
    assert workshop.sql("SELECT model_name FROM models") == [("a",)]
    assert workshop.sql("SELECT name FROM managed_resources") == [("a@1",)]


def test_prune_can_be_a_setting(workshop: Any) -> None:
    workshop.apply({"models": models(workshop, "a")})
    workshop.write({"settings": {"prune": True}})
    assert actions(workshop.plan()) == ["delete model/a@1"]
    assert actions(workshop.plan(prune=False)) == []


def test_a_resource_with_deletion_orphan_is_let_go_and_its_rows_stay(workshop: Any) -> None:
    manifest = {"models": {"a@1": {"deletion": "orphan"}}}
    workshop.apply(manifest)
    assert actions(workshop.apply({}, prune=True).plan) == ["forget model/a@1"]
    assert workshop.sql("SELECT model_name FROM models") == [("a",)]
    assert workshop.sql("SELECT name FROM managed_resources") == []
    workshop.write(manifest)
    assert [c.code for c in workshop.plan().conflicts] == ["AH053"]


def test_a_chain_of_things_is_deleted_in_one_apply(workshop: Any) -> None:
    workshop.apply(
        {
            "models": models(workshop, "a", "b"),
            "strategies": {"even": {"uses": "linear"}},
            "reactors": {"story": merge("story", "a", "b", strategy="even")},
        }
    )
    workshop.apply({}, prune=True)
    for table in ("models", "fusion_strategies", "cognitive_fusion_reactors", "managed_resources"):
        assert workshop.value(f"SELECT count(*) FROM {table}") == 0
    assert workshop.value("SELECT count(*) FROM fusion_operation_inputs") == 2


def test_destroy_takes_all_of_this_project_and_nothing_else(open_workshop: Opened) -> None:
    mine, other = open_workshop("mine"), open_workshop("other")
    other.apply({"project": "other", "models": {"theirs@1": {}}})
    mine.apply(
        {
            "project": "mine",
            "models": models(mine, "a", "b"),
            "reactors": {"story": merge("story", "a", "b")},
        }
    )
    mine.destroy()
    assert mine.sql("SELECT model_name FROM models") == [("theirs",)]
    assert mine.sql("SELECT project, name FROM managed_resources") == [("other", "theirs@1")]
    assert mine.value("SELECT head_revision FROM projects WHERE name = 'mine'") == 2


def test_an_alias_moves_between_versions_and_its_history_stays(workshop: Any) -> None:
    def manifest(holder: str) -> Json:
        versions = ("poet@1", "poet@2")
        return {"models": {v: {"aliases": ["live"] if v == holder else []} for v in versions}}

    for holder in ("poet@1", "poet@2", "poet@1"):
        workshop.apply(manifest(holder))
        assert not workshop.plan().has_changes
    assert workshop.sql(
        "SELECT version, released_at IS NULL FROM model_alias_history ORDER BY id"
    ) == [("1", False), ("2", False), ("1", True)]
    holder = "SELECT version FROM model_aliases JOIN models ON models.id = model_id"
    assert workshop.value(holder) == "1"


def test_an_alias_goes_with_a_renamed_version_in_the_history_too(workshop: Any) -> None:
    workshop.apply({"models": {"a@1": {"aliases": ["live"]}}})
    workshop.apply({"models": {"a@2": {"aliases": ["live"], "renamed_from": "a@1"}}})
    current = "SELECT version FROM model_alias_history WHERE released_at IS NULL"
    assert workshop.sql(current) == [("2",)]


def test_the_history_of_an_alias_ends_with_its_model(workshop: Any) -> None:
    workshop.apply({"models": {"a@1": {"aliases": ["live"]}}})
    workshop.apply({}, prune=True)
    assert workshop.value("SELECT released_at IS NOT NULL FROM model_alias_history")


def test_layers_heads_and_weights_follow_the_architecture(workshop: Any, llama: Json) -> None:
    names = ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "odd"]
    weights = workshop.weights("a.safetensors", {n: np.ones(2, np.float32) for n in names})
    workshop.apply({"models": {"a@1": {"architecture": llama, "weights": weights}}})
    assert workshop.sql(
        "SELECT layer_index, layer_type, num_heads, head_dim FROM transformer_layers ORDER BY 1"
    ) == [(0, "decoder", 4, 2), (1, "decoder", 4, 2)]
    assert workshop.sql(
        """SELECT layer_index, array_agg(kv_head_index ORDER BY head_index)
        FROM attention_heads JOIN transformer_layers ON id = layer_id GROUP BY 1 ORDER BY 1"""
    ) == [(0, [0, 0, 1, 1]), (1, [0, 0, 1, 1])]
    assert workshop.sql(
        """SELECT tensor_name, weight_type, layer_index FROM model_weights
        LEFT JOIN transformer_layers AS layers ON layers.id = layer_id ORDER BY 1"""
    ) == [
        ("model.embed_tokens.weight", "token_embedding", None),
        ("model.layers.1.mlp.up_proj.weight", "up_proj", 1),
        ("odd", "other", None),
    ]
    llama["num_hidden_layers"] = 1
    workshop.apply({"models": {"a@1": {"architecture": llama, "weights": weights}}})
    assert workshop.value("SELECT count(*) FROM transformer_layers") == 1
    assert workshop.value("SELECT count(*) FROM attention_heads") == 4
    assert not workshop.plan().has_changes


@pytest.mark.parametrize("hidden", [10**9, 2**31 - 1, 2**40, "many"])
def test_no_architecture_makes_an_apply_fail(workshop: Any, llama: Json, hidden: object) -> None:
    del llama["intermediate_size"]
    manifest = {"models": {"a@1": {"architecture": {**llama, "hidden_size": hidden}}}}
    workshop.apply(manifest)
    assert not workshop.plan().has_changes


# What it refuses


def test_a_row_that_nobody_manages_is_a_conflict_and_stays_as_it_is(workshop: Any) -> None:
    workshop.apply({})
    workshop.sql("INSERT INTO fusion_strategies (name, uses) VALUES ('mine', 'by hand')")
    workshop.sql(
        "INSERT INTO models (model_name, version, model_type, architecture_config)"
        " VALUES ('a', '1', 'other', '{}')"
    )
    workshop.write({"models": {"a@1": {}}, "strategies": {"mine": {"uses": "linear"}}})
    before = snapshot(workshop)
    plan = workshop.plan()
    assert {(str(c.key), c.code) for c in plan.conflicts} == {
        ("model/a@1", "AH053"),
        ("strategy/mine", "AH053"),
    }
    with pytest.raises(RefusedError) as caught:
        workshop.apply()
    assert (caught.value.error_code, caught.value.exit_code) == ("AH053", 5)
    assert snapshot(workshop) == before


def test_another_projects_resource_is_a_conflict_and_stays_as_it_is(
    open_workshop: Opened,
) -> None:
    mine, other = open_workshop("mine"), open_workshop("other")
    mine.apply({"project": "mine", "models": {"a@1": {"description": "mine"}}})
    other.write({"project": "other", "models": {"a@1": {"description": "theirs"}, "b@1": {}}})
    before = snapshot(mine)
    with pytest.raises(RefusedError, match="belongs to the project 'mine'") as caught:
        other.apply()
    assert (caught.value.error_code, caught.value.exit_code) == ("AH053", 5)
    assert snapshot(mine) == before
    assert not mine.plan().has_changes


def test_the_alias_of_another_projects_model_cannot_be_taken(open_workshop: Opened) -> None:
    mine, other = open_workshop("mine"), open_workshop("other")
    mine.apply({"project": "mine", "models": {"a@1": {"aliases": ["live"]}}})
    with pytest.raises(RefusedError) as caught:
        other.apply({"project": "other", "models": {"a@2": {"aliases": ["live"]}}})
    assert caught.value.error_code == "AH053"
    assert not mine.plan().has_changes


def test_a_protected_resource_outlives_its_block_a_prune_and_a_destroy(workshop: Any) -> None:
    workshop.apply({"models": {"a@1": {"protected": True}, "b@1": {}}})
    workshop.write({"models": {"b@1": {}}})
    assert not workshop.plan().has_changes
    before = snapshot(workshop)
    for refused in (lambda: workshop.apply(prune=True), workshop.destroy):
        with pytest.raises(RefusedError) as caught:
            refused()
        assert (caught.value.error_code, caught.value.exit_code) == ("AH052", 5)
    assert snapshot(workshop) == before
    workshop.apply({"models": {"a@1": {"protected": False}}})
    workshop.apply({}, prune=True)
    assert workshop.sql("SELECT model_name FROM models") == []


def test_a_model_that_another_project_uses_is_not_pruned(open_workshop: Opened) -> None:
    mine, other = open_workshop("mine"), open_workshop("other")
    mine.apply({"project": "mine", "models": {**models(mine, "a"), "b@1": {"aliases": ["live"]}}})
    with_alias = models(mine, "a")
    with_alias["a@1"]["aliases"] = ["live"]
    mine.apply({"project": "mine", "models": with_alias})
    other.apply(
        {
            "project": "other",
            "models": models(other, "c"),
            "reactors": {"mix": merge("mix", "c", "a:live")},
        }
    )
    before = snapshot(mine)
    mine.write({"project": "mine"})
    with pytest.raises(RefusedError, match=r"model/a@1 is used by reactor/mix"):
        mine.apply(prune=True)
    assert snapshot(mine) == before


def test_a_model_whose_reactor_is_let_go_is_refused_and_not_a_database_error(
    workshop: Any,
) -> None:
    workshop.apply(
        {
            "models": models(workshop, "a", "b"),
            "reactors": {"story": merge("story", "a", "b", deletion="orphan")},
        }
    )
    with pytest.raises(RefusedError, match="is used by reactor/story"):
        workshop.destroy()


def test_a_model_that_a_changed_reactor_still_uses_is_refused(workshop: Any) -> None:
    reactor = merge("mix", "b", "a:live")
    with_alias = models(workshop, "a", "b")
    with_alias["a@1"]["aliases"] = ["live"]
    workshop.apply({"models": with_alias, "reactors": {"mix": reactor}})
    kept = {"b@1": with_alias["b@1"]}
    with pytest.raises(RefusedError, match="is used by reactor/mix"):
        workshop.apply(
            {"models": kept, "reactors": {"mix": {**reactor, "description": "changed"}}},
            prune=True,
        )


def test_a_model_that_a_renamed_reactor_no_longer_uses_is_pruned(workshop: Any) -> None:
    declared = models(workshop, "a", "b")
    workshop.apply({"models": declared, "reactors": {"mix": merge("mix", "a", "b")}})
    renamed = {"blend": merge("mix", "a", renamed_from="mix")}
    workshop.apply({"models": {"a@1": declared["a@1"]}, "reactors": renamed}, prune=True)
    assert workshop.sql("SELECT model_name FROM models ORDER BY 1") == [("a",), ("mix",)]
    assert not workshop.plan().has_changes


def test_a_plan_from_an_older_revision_is_refused(open_workshop: Opened) -> None:
    one, two = open_workshop("one"), open_workshop("two")
    one.write({"models": {"a@1": {}}})
    two.write({"models": {"b@1": {}}})
    with one.project() as first, two.project() as second:
        plans = first.plan(), second.plan()
        first.apply(plans[0])
        before = snapshot(one)
        with pytest.raises(StalePlanError) as caught:
            second.apply(plans[1])
        assert (caught.value.error_code, caught.value.exit_code) == ("AH050", 3)
        assert snapshot(one) == before
        with pytest.raises(StalePlanError):
            first.apply(plans[0])


def test_what_was_created_after_the_plan_was_made_is_not_overwritten(
    open_workshop: Opened,
) -> None:
    mine, other = open_workshop("mine"), open_workshop("other")
    mine.write({"project": "mine", "models": {"a@1": {"description": "mine"}}})
    with mine.project() as project:
        plan = project.plan()
        other.apply({"project": "other", "models": {"a@1": {"description": "theirs"}}})
        with pytest.raises(StalePlanError, match="created after the plan"):
            project.apply(plan)
    assert mine.value("SELECT description FROM models") == "theirs"


def test_of_two_applies_at_once_one_wins_and_the_other_is_stale(open_workshop: Opened) -> None:
    workshops = [open_workshop(f"w{index}") for index in range(4)]
    ready = threading.Barrier(len(workshops))
    outcomes: list[str] = []

    def run(workshop: Any, index: int) -> None:
        workshop.write({"models": {**models(workshop, "a"), f"own{index}@1": {}}})
        with workshop.project() as project:
            plan = project.plan()
            ready.wait(30)
            try:
                project.apply(plan)
                outcomes.append("applied")
            except StalePlanError as exc:
                outcomes.append(exc.error_code)

    threads = [threading.Thread(target=run, args=(w, i)) for i, w in enumerate(workshops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["AH050", "AH050", "AH050", "applied"]
    assert workshops[0].value("SELECT count(*) FROM models") == 2
    assert workshops[0].value("SELECT count(*) FROM weight_builds WHERE status <> 'complete'") == 0


def test_two_projects_at_once_cannot_both_take_a_name(open_workshop: Opened) -> None:
    workshops = [open_workshop(f"w{index}") for index in range(3)]
    ready = threading.Barrier(len(workshops))
    outcomes: list[str] = []

    def run(workshop: Any, index: int) -> None:
        workshop.write({"project": f"p{index}", "models": {"a@1": {"description": str(index)}}})
        with workshop.project() as project:
            plan = project.plan()
            ready.wait(30)
            try:
                project.apply(plan)
                outcomes.append(str(index))
            except StalePlanError:
                pass

    threads = [threading.Thread(target=run, args=(w, i)) for i, w in enumerate(workshops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (winner,) = outcomes
    assert workshops[0].sql("SELECT description FROM models") == [(winner,)]
    assert workshops[0].sql("SELECT project FROM managed_resources") == [(f"p{winner}",)]


# What it records


def test_a_revision_says_what_changed_before_and_after(workshop: Any) -> None:
    workshop.apply({"models": {"a@1": {"description": "old"}, "b@1": {}}})
    workshop.apply({"models": {"a@1": {"description": "new"}}}, prune=True)
    assert workshop.sql(
        """SELECT revision, ordinal, action, name, before->>'description', after->>'description',
                  before IS NULL, after IS NULL FROM revision_changes ORDER BY 1, 2"""
    ) == [
        (1, 0, "create", "a@1", None, "old", True, False),
        (1, 1, "create", "b@1", None, None, True, False),
        (2, 0, "update", "a@1", "old", "new", False, False),
        (2, 1, "delete", "b@1", None, None, False, True),
    ]
    revisions = workshop.sql(
        "SELECT revision, summary->'changes', actor <> '', host <> '' FROM revisions ORDER BY 1"
    )
    assert revisions == [
        (1, {"create": 2}, True, True),
        (2, {"update": 1, "delete": 1}, True, True),
    ]
    assert workshop.value("SELECT head_revision FROM projects") == 2


def test_a_plan_without_changes_makes_no_revision(workshop: Any) -> None:
    workshop.apply({"models": {"a@1": {}}})
    workshop.apply()
    assert workshop.value("SELECT count(*) FROM revisions") == 1


def test_every_root_that_a_model_had_stays_in_its_history(workshop: Any) -> None:
    for seed in (1, 2, 1):
        weights = workshop.weights("a.safetensors", tensors(seed))
        report = workshop.apply({"models": {"a@1": {"weights": weights}}})
        assert not workshop.plan().has_changes
    assert [built.new_bytes for built in report.builds.values()] == [0]
    assert workshop.sql(
        "SELECT revision, project, root = lag(root, 2) OVER (ORDER BY id)"
        " FROM model_weight_history ORDER BY id"
    ) == [(1, "work", None), (2, "work", None), (3, "work", True)]


# Weights


def test_absent_weights_that_are_recorded_are_kept_with_a_note(
    workshop: Any, tmp_path: Path
) -> None:
    manifest = {"models": models(workshop, "a")}
    workshop.apply(manifest)
    (tmp_path / "work" / "a.safetensors").unlink()
    plan = workshop.plan()
    assert not plan.has_changes
    assert len(plan.notes) == 1
    assert "model/a@1: a.safetensors is not here" in plan.notes[0]
    manifest["models"]["a@1"]["description"] = "new"
    root = root_of(workshop, "a@1")
    workshop.apply(manifest)
    assert root_of(workshop, "a@1") == root
    assert not workshop.plan().has_changes


def test_absent_weights_that_are_new_are_an_error_with_a_line(workshop: Any) -> None:
    workshop.write({"models": {"a@1": {"type": "other", "weights": "not/here.safetensors"}}})
    with pytest.raises(ManifestError) as caught:
        workshop.plan()
    (problem,) = caught.value.problems
    assert (problem.code, problem.file, problem.line) == ("AH025", "arc_halo.yaml", 6)
    assert "not/here.safetensors" in problem.message


def test_weights_other_than_those_promised_are_refused_with_a_line(workshop: Any) -> None:
    weights = workshop.weights("a.safetensors", tensors(1))
    promised = {"source": weights, "digest": "sha256:" + "0" * 64}
    workshop.write({"models": {"a@1": {"weights": promised}}})
    with pytest.raises(ManifestError) as caught:
        workshop.plan()
    (problem,) = caught.value.problems
    assert (problem.code, problem.line) == ("AH063", 7)
    right = problem.message.partition("has the digest ")[2].partition(",")[0]
    workshop.apply({"models": {"a@1": {"weights": {"source": weights, "digest": right}}}})
    assert root_of(workshop, "a@1") == right.removeprefix("sha256:")


def test_weights_that_change_between_plan_and_apply_are_not_imported(
    workshop: Any,
) -> None:
    workshop.write({"models": models(workshop, "a", "b")})
    with workshop.project() as project:
        plan = project.plan()
        workshop.weights("b.safetensors", tensors(99))
        with pytest.raises(WeightsError) as caught:
            project.apply(plan)
    assert caught.value.error_code == "AH063"
    for table in ("models", "managed_resources", "revisions"):
        assert workshop.value(f"SELECT count(*) FROM {table}") == 0
    workshop.apply()
    assert workshop.value("SELECT count(*) FROM models WHERE status = 'ready'") == 2


def test_a_stale_digest_cache_does_not_block_the_project_for_good(
    workshop: Any, tmp_path: Path
) -> None:
    import os

    file = tmp_path / "work" / "a.safetensors"
    workshop.write({"models": models(workshop, "a")})
    workshop.plan()
    stat = file.stat()
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    with file.open("r+b") as stream:
        stream.write(raw)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(WeightsError):
        workshop.apply()
    workshop.apply()  # as the hint says
    assert not workshop.plan().has_changes


@pytest.mark.parametrize(
    "damage",
    [
        "not json",
        '{"format": 1, "sources": {"KEY": 5}}',
        '{"format": 1, "sources": {"KEY": {"files": 5}}}',
        '{"format": 1, "sources": {"KEY": {"files": {}}}}',
        '{"format": 1, "sources": [1]}',
        "[]",
    ],
)
def test_a_broken_digest_cache_is_started_anew(workshop: Any, tmp_path: Path, damage: str) -> None:
    workshop.write({"models": models(workshop, "a")})
    workshop.plan()
    cache = tmp_path / "work" / ".arc-halo" / "digests.json"
    source = tmp_path / "work" / "a.safetensors"
    cache.write_text(damage.replace("KEY", f"safetensors:{source}"))
    workshop.apply()
    assert not workshop.plan().has_changes


def test_ignored_weights_stay_when_something_else_changes(workshop: Any) -> None:
    manifest: Json = {"models": models(workshop, "a")}
    workshop.apply(manifest)
    root = root_of(workshop, "a@1")
    workshop.weights("a.safetensors", tensors(7))
    manifest["models"]["a@1"] |= {"ignore": ["weights"], "description": "new"}
    workshop.apply(manifest)
    assert workshop.value("SELECT description FROM models") == "new"
    assert root_of(workshop, "a@1") == root
    assert not workshop.plan().has_changes


def test_weights_can_be_taken_out_of_a_declaration(workshop: Any) -> None:
    workshop.apply({"models": models(workshop, "a")})
    workshop.apply({"models": {"a@1": {"type": "other"}}})
    assert workshop.sql("SELECT status, parameter_count, weight_set_id FROM models") == [
        ("registered", None, None)
    ]
    assert workshop.value("SELECT count(*) FROM model_weights") == 0
    assert not workshop.plan().has_changes


# Merges


def test_a_merge_of_a_merge_is_made_in_one_apply(workshop: Any) -> None:
    manifest = {
        "models": models(workshop, "a", "b", "c"),
        "reactors": {
            "two": merge("last", "first", "c"),
            "one": merge("first", "a", "b"),
        },
    }
    workshop.write(manifest)
    unknown = [c for c in workshop.plan().changes if c.build and "recipe" in repr(c.build)]
    assert [c.key.name for c in unknown] == ["first@1", "last@1"]
    workshop.apply()
    assert not workshop.plan().has_changes
    a, b, c = (tensors(index)["t0"].astype(np.float64) for index in range(3))
    first = ((a + b) / 2).astype(np.float32)
    last = ((first.astype(np.float64) + c) / 2).astype(np.float32)
    with workshop.project() as project:
        from arc_halo.api import Halo

        halo = Halo(project)
        assert np.array_equal(halo.tensors.read("first", "t0"), first)
        assert np.array_equal(halo.tensors.read("last", "t0"), last)


def test_only_what_depends_on_a_changed_weight_is_fused_again(workshop: Any) -> None:
    manifest: Json = {
        "models": models(workshop, "a", "b", "c"),
        "reactors": {
            "one": merge("first", "a", "b"),
            "two": merge("last", "first", "c"),
            "apart": merge("other", "b", "c"),
        },
    }
    workshop.apply(manifest)
    untouched = root_of(workshop, "other@1")
    manifest["reactors"]["one"]["members"][0]["weight"] = 3.0
    report = workshop.apply(manifest)
    assert {str(key) for key in report.builds} == {"model/first@1", "model/last@1"}
    assert actions(report.plan) == [
        "replace model/first@1",
        "replace model/last@1",
        "update reactor/one",
    ]
    assert root_of(workshop, "other@1") == untouched
    assert not workshop.plan().has_changes


def test_a_change_of_words_alone_fuses_nothing_again(workshop: Any) -> None:
    manifest: Json = {
        "models": models(workshop, "a", "b"),
        "reactors": {"story": merge("story", "a", "b")},
    }
    workshop.apply(manifest)
    manifest["reactors"]["story"]["members"][0]["role"] = "primary"
    manifest["reactors"]["story"]["description"] = "of two"
    report = workshop.apply(manifest)
    assert actions(report.plan) == ["update reactor/story"]
    assert report.builds == {}


def test_a_renamed_member_is_not_fused_again(workshop: Any) -> None:
    declared = models(workshop, "a", "b")
    workshop.apply({"models": declared, "reactors": {"story": merge("story", "a", "b")}})
    operations = workshop.sql("SELECT id FROM fusion_operations")
    renamed = {"z@1": {**declared["a@1"], "renamed_from": "a"}, "b@1": declared["b@1"]}
    report = workshop.apply({"models": renamed, "reactors": {"story": merge("story", "z", "b")}})
    assert actions(report.plan) == ["rename model/z@1", "update reactor/story"]
    assert sum(built.tensors_built for built in report.builds.values()) == 0
    assert workshop.sql("SELECT id FROM fusion_operations") == operations
    assert not workshop.plan(prune=True).has_changes


def test_a_merge_records_its_lineage(workshop: Any) -> None:
    workshop.apply(
        {
            "models": models(workshop, "a", "b"),
            "reactors": {"story": merge("story", "a", "b", params={"normalize": False})},
        }
    )
    (row,) = workshop.sql(
        """SELECT reactor_name, operation_type, status, strategy_name, strategy_version, params,
                  output_model_name || '@' || output_model_version, encode(output_root, 'hex'),
                  tensor_count, size_bytes, finished_at >= started_at FROM fusion_operations"""
    )
    assert row == (
        "story", "merge", "completed", "linear", "2", {"normalize": False}, "story@1",
        root_of(workshop, "story@1"), 2, 48, True,
    )  # fmt: skip
    assert workshop.sql(
        """SELECT ordinal, model_name || '@' || model_version, encode(root, 'hex'), role, is_base,
                  weight FROM fusion_operation_inputs ORDER BY 1"""
    ) == [
        (0, "a@1", root_of(workshop, "a@1"), "secondary", False, 1.0),
        (1, "b@1", root_of(workshop, "b@1"), "secondary", False, 1.0),
    ]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"t0": np.ones((2, 3), np.float32), "t1": np.ones((3, 2), np.float32)}, "t0: shape"),
        ({"t0": np.ones((3, 2), np.float16), "t1": np.ones((3, 2), np.float32)}, "t0: dtype"),
        ({"t0": np.ones((3, 2), np.float32)}, "t1: only in model/a@1|t1: only in a@1"),
        ({**tensors(0), "t2": np.ones(1, np.float32)}, "t2: only in"),
    ],
    ids=["shape", "dtype", "missing", "extra"],
)
def test_models_that_do_not_fit_are_refused_and_nothing_changes(
    workshop: Any, other: dict[str, np.ndarray], said: str
) -> None:
    declared = models(workshop, "a")
    declared["b@1"] = {"weights": workshop.weights("b.safetensors", other)}
    workshop.write({"models": declared, "reactors": {"story": merge("story", "a", "b")}})
    with pytest.raises(IncompatibleModelsError, match=said) as caught:
        workshop.apply()
    assert (caught.value.error_code, caught.value.exit_code) == ("AH070", 4)
    for table in ("models", "managed_resources", "revisions"):
        assert workshop.value(f"SELECT count(*) FROM {table}") == 0


def test_a_member_without_weights_is_refused(workshop: Any) -> None:
    declared = {**models(workshop, "a"), "empty@1": {}}
    workshop.write({"models": declared, "reactors": {"story": merge("story", "a", "empty")}})
    assert [c.code for c in workshop.plan().conflicts] == ["AH064"]
    with pytest.raises(RefusedError, match="model/empty@1, which has no weights"):
        workshop.apply()


def test_a_failing_strategy_changes_nothing(workshop: Any) -> None:
    (workshop.directory / "broken.py").write_text(
        "from arc_halo import FusionStrategy, hookimpl\n"
        "def broken(tensors, context): return 1 / 0\n"
        "@hookimpl\n"
        "def arc_halo_fusion_strategies():\n"
        "    yield FusionStrategy(name='broken', summary='fails', fuse_weights=broken)\n"
    )
    workshop.write(
        {
            "plugins": ["broken.py"],
            "models": models(workshop, "a", "b"),
            "reactors": {"story": merge("story", "a", "b", strategy="broken")},
        }
    )
    with pytest.raises(ArcHaloError, match=r"'broken' failed on 't[01]': ZeroDivisionError") as e:
        workshop.apply()
    assert e.value.error_code == "AH071"
    assert workshop.value("SELECT count(*) FROM models") == 0
