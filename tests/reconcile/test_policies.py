"""Policies: plugins that refuse a plan, and plugins that hear of an apply."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arc_halo.errors import PluginError, RefusedError

PLUGINS = Path(__file__).parents[2] / "plugins"

FAILING = """
from arc_halo import hookimpl

@hookimpl
def arc_halo_before_apply(plan):
    raise ValueError("out of order")
"""

MEDDLING = """
from arc_halo import hookimpl

@hookimpl
def arc_halo_before_apply(plan):
    plan["resource_changes"].clear()

@hookimpl
def arc_halo_after_apply(plan, report):
    raise RuntimeError("nobody listens")
"""


@pytest.fixture
def guarded(workshop):
    """A workshop with the two example policies, and a model in production."""
    for name in ("keep_production", "announce"):
        (workshop.directory / f"{name}.py").write_text((PLUGINS / f"{name}.py").read_text())
    manifest = {
        "plugins": ["keep_production.py", "announce.py"],
        "models": {"a@1": {"type": "other", "aliases": ["production"]}},
        "strategies": {"even": {"uses": "linear"}},
    }
    workshop.apply(manifest)
    return workshop, manifest


def test_a_policy_refuses_with_its_reason_and_its_file(guarded):
    workshop, manifest = guarded
    del manifest["models"]
    workshop.write(manifest)
    (conflict,) = workshop.plan(prune=True).conflicts
    assert conflict.code == "AH056"
    assert "model/a@1 is in production, and would be deleted" in conflict.message
    assert "keep_production.py" in conflict.message
    with pytest.raises(RefusedError, match="in production") as caught:
        workshop.apply(prune=True)
    assert caught.value.exit_code == 5
    assert workshop.value("SELECT count(*) FROM models") == 1


def test_a_policy_is_asked_again_when_the_plan_is_applied(guarded, tmp_path):
    workshop, manifest = guarded
    del manifest["models"]
    workshop.write(manifest | {"plugins": []})
    plan = workshop.plan(prune=True)
    assert not plan.conflicts
    workshop.write(manifest)
    with workshop.project() as project, pytest.raises(RefusedError, match="in production"):
        project.apply(plan)


def test_what_was_applied_is_announced(guarded, monkeypatch, tmp_path):
    workshop, manifest = guarded
    announced = tmp_path / "announced.jsonl"
    monkeypatch.setenv("ARC_HALO_ANNOUNCE", str(announced))
    manifest["models"]["b@1"] = {"type": "other"}
    workshop.apply(manifest)
    workshop.apply(manifest)  # nothing to do, nothing to tell
    (line,) = announced.read_text().splitlines()
    assert json.loads(line) == {"project": "work", "revision": 2, "changed": ["model/b@1"]}


def test_a_policy_that_fails_has_not_agreed(workshop):
    (workshop.directory / "broken.py").write_text(FAILING)
    workshop.write({"plugins": ["broken.py"], "models": {"a@1": {"type": "other"}}})
    with pytest.raises(PluginError, match=r"broken\.py.*out of order"):
        workshop.plan()


def test_a_policy_cannot_change_the_plan_and_a_listener_undoes_nothing(workshop):
    (workshop.directory / "meddling.py").write_text(MEDDLING)
    with pytest.raises(PluginError, match=r"revision 1 of work is applied, but .*nobody listens"):
        workshop.apply({"plugins": ["meddling.py"], "models": {"a@1": {"type": "other"}}})
    assert workshop.value("SELECT count(*) FROM models") == 1


def test_a_rename_does_not_hide_that_weights_are_replaced(guarded):
    import numpy as np

    workshop, manifest = guarded
    one = workshop.weights("one.safetensors", {"t": np.ones(2, np.float32)})
    two = workshop.weights("two.safetensors", {"t": np.zeros(2, np.float32)})
    model = {"type": "other", "aliases": ["production"]}
    manifest["models"] = {"a@1": {**model, "weights": one}}
    workshop.apply(manifest)
    manifest["models"] = {"b@1": {**model, "weights": two, "renamed_from": "a"}}
    workshop.write(manifest)
    (conflict,) = workshop.plan().conflicts
    assert "is in production" in conflict.message


@pytest.mark.parametrize(
    ("says", "told"),
    [("yield ' '", "refuses, and gives no reason"), ("return False", "'bool' object")],
)
def test_a_policy_without_a_reason_still_refuses(workshop, says, told):
    (workshop.directory / "mute.py").write_text(
        FAILING.replace('raise ValueError("out of order")', says)
    )
    workshop.write({"plugins": ["mute.py"], "models": {"a@1": {"type": "other"}}})
    with pytest.raises((PluginError, RefusedError), match=rf"mute\.py.*{told}"):
        workshop.apply()


def test_a_policy_that_ends_the_program_has_not_agreed(workshop):
    (workshop.directory / "quits.py").write_text(
        FAILING.replace('raise ValueError("out of order")', "raise SystemExit(0)")
    )
    workshop.write({"plugins": ["quits.py"], "models": {"a@1": {"type": "other"}}})
    with pytest.raises(PluginError, match=r"quits\.py.*SystemExit"):
        workshop.plan()
