"""A part of the manifest: targets with what they need, without what is excluded."""

from __future__ import annotations

import pytest

from arc_halo.errors import InvalidInputError


def merge(output, *members):
    return {
        "type": "merge",
        "strategy": "even",
        "members": [{"model": name} for name in members],
        "produces": {"model": output, "version": "1"},
    }


@pytest.fixture
def manifest(workshop):
    import numpy as np

    def weights(name):
        return workshop.weights(f"{name}.safetensors", {"t": np.ones(3, np.float32)})

    models = {f"{n}@1": {"type": "other", "weights": weights(n)} for n in ("a", "b", "c")}
    return {
        "models": models,
        "strategies": {"even": {"uses": "linear"}, "odd": {"uses": "linear"}},
        "reactors": {"one": merge("ab", "a", "b"), "two": merge("abc", "ab", "c")},
    }


def addresses(plan):
    return sorted(str(change.key) for change in plan.changes)


def test_a_target_brings_what_it_needs(workshop, manifest):
    workshop.write(manifest)
    plan = workshop.plan(targets=["model/ab"])
    assert plan.is_partial
    assert addresses(plan) == [
        "model/a@1",
        "model/ab@1",
        "model/b@1",
        "reactor/one",
        "strategy/even",
    ]
    workshop.apply(targets=["model/ab"])
    assert addresses(workshop.plan()) == ["model/abc@1", "model/c@1", "reactor/two", "strategy/odd"]


def test_an_exclusion_takes_what_needs_it(workshop, manifest):
    workshop.write(manifest)
    plan = workshop.plan(excludes=["model/b@*"])
    assert addresses(plan) == ["model/a@1", "model/c@1", "strategy/even", "strategy/odd"]


def test_nothing_outside_is_pruned(workshop, manifest):
    workshop.apply(manifest)
    kept = {"models": {"a@1": manifest["models"]["a@1"]}}
    workshop.write(kept)
    plan = workshop.plan(prune=True, targets=["model/a@1"])
    assert not plan.changes
    assert not plan.orphans
    plan = workshop.plan(prune=True, targets=["strategy/*"])
    assert addresses(plan) == ["strategy/even", "strategy/odd"]


def test_a_partial_apply_is_recorded_as_one(workshop, manifest):
    workshop.apply(manifest, targets=["strategy/odd"])
    assert workshop.sql("SELECT is_partial FROM revisions") == [(True,)]
    assert workshop.sql("SELECT manifest_digest FROM projects") == [(None,)]
    workshop.apply(manifest)
    assert workshop.sql("SELECT is_partial FROM revisions ORDER BY 1") == [(False,), (True,)]
    assert workshop.value("SELECT manifest_digest IS NOT NULL FROM projects")


def test_a_glob_that_matches_nothing_is_a_mistake(workshop, manifest):
    workshop.write(manifest)
    with pytest.raises(InvalidInputError, match="--target b:") as caught:
        workshop.plan(targets=["b"])
    assert caught.value.hint == "did you mean 'model/b@1'?"
    with pytest.raises(InvalidInputError, match="--target model/aa@1") as caught:
        workshop.plan(targets=["model/aa@1"])
    assert caught.value.hint == "did you mean 'model/a@1'?"


def test_a_target_that_needs_what_is_excluded_is_a_mistake(workshop, manifest):
    workshop.write(manifest)
    with pytest.raises(InvalidInputError, match="needs model/a@1, which is excluded"):
        workshop.plan(targets=["model/ab"], excludes=["model/a"])


def test_what_a_resource_left_out_used_to_be_is_left_out_too(workshop):
    keep = {"k@1": {"type": "other"}}
    workshop.apply({"models": {**keep, "old@1": {"type": "other"}}})
    workshop.write({"models": {**keep, "new@1": {"type": "other", "renamed_from": "old"}}})
    for selection in ({"excludes": ["model/new*"]}, {"targets": ["model/old*", "model/k"]}):
        plan = workshop.plan(prune=True, **selection)
        assert not plan.changes
        assert not plan.orphans


def test_what_refers_to_a_renamed_model_has_not_drifted(workshop, manifest):
    """Whether the reactors that use it are in the plan, or not declared any more."""
    workshop.apply(manifest)
    workshop.sql("UPDATE models SET description = 'by hand' WHERE model_name = 'b'")
    models = dict(manifest["models"])
    models["d@1"] = {**models.pop("a@1"), "renamed_from": "a"}
    reactors = {**manifest["reactors"], "one": merge("ab", "d", "b")}
    workshop.apply({**manifest, "models": models, "reactors": reactors}, targets=["model/d"])
    assert [str(each.key) for each in workshop.drift().resources] == ["model/b@1"]
    plan = workshop.plan()
    assert [str(change.key) for change in plan.changes if not change.is_drift] == ["reactor/one"]
    workshop.apply()
    assert not workshop.drift().is_found
