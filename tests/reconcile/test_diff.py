"""The diff is pure, so its laws are tested by the hundred, on states in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.manifest.documents import KINDS, Lifecycle, spec_digest
from arc_halo.reconcile.changes import Change, DesiredResource, LiveResource
from arc_halo.reconcile.diff import Difference, diff, field_changes
from arc_halo.types import JsonObject, Key

Desired = dict[Key, DesiredResource]
Live = dict[Key, LiveResource]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from(["", "a"]) | st.just(1.5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner),
    max_leaves=4,
)
SPECS = st.dictionaries(st.sampled_from(["architecture", "description", "tags"]), VALUES)
KEYS = st.builds(
    lambda kind, name: Key(kind=kind, name=f"{name}@1" if kind == "model" else name),
    st.sampled_from(KINDS),
    st.sampled_from("abcd"),
)


def want(key: Key, spec: JsonObject, **lifecycle: Any) -> DesiredResource:
    return DesiredResource(
        key=key,
        spec=spec,
        digest=spec_digest(spec),
        lifecycle=Lifecycle(**lifecycle),
        source_file="arc_halo.yaml",
    )


def have(key: Key, spec: JsonObject, **facts: Any) -> LiveResource:
    return LiveResource(
        **{
            "key": key,
            "owner": "work",
            "digest": spec_digest(spec),
            "spec": spec,
            "live_spec": spec,
            **facts,
        }
    )


def model(name: str) -> Key:
    return Key(kind="model", name=name)


def ordered(specs: Mapping[Key, JsonObject], **lifecycle: Any) -> Desired:
    """As the resolver gives them: kinds in the order in which they can be created."""
    keys = sorted(specs, key=lambda key: (KINDS.index(key.kind), key.name))
    return {key: want(key, specs[key], **lifecycle) for key in keys}


def carried_out(live: Live, found: Difference) -> Live:
    """What apply makes of `live`, by the definition of each action."""
    state = dict(live)
    for change in found.changes:
        if change.old_key is not None:
            del state[change.old_key]
        if change.action in ("delete", "forget"):
            del state[change.key]
            continue
        assert change.after is not None
        state[change.key] = have(
            change.key,
            change.after,
            digest=change.digest,
            protected=change.lifecycle.protected,
            deletion=change.lifecycle.deletion,
        )
    return state


@st.composite
def live_states(draw: st.DrawFn) -> Live:
    specs = draw(st.dictionaries(KEYS, SPECS, max_size=6))
    return {key: _live(draw, key, spec) for key, spec in specs.items()}


def _live(draw: st.DrawFn, key: Key, spec: JsonObject) -> LiveResource:
    resource = have(key, spec, deletion=draw(st.sampled_from(["delete", "orphan"])))
    if draw(st.booleans()):
        resource = replace(resource, is_drifted=True, live_spec=draw(SPECS))
    return replace(resource, is_there=draw(st.sampled_from([True, True, True, False])))


@given(st.dictionaries(KEYS, SPECS, max_size=6), live_states(), st.booleans())
def test_applying_a_difference_leaves_none(
    specs: dict[Key, JsonObject], live: Live, prune: bool
) -> None:
    desired = ordered(specs)
    after = carried_out(live, diff(desired, live, project="work", prune=prune))
    again = diff(desired, after, project="work", prune=prune)
    assert again.changes == ()
    assert again.unchanged == len(desired)
    for key, resource in desired.items():
        assert spec_digest(after[key].spec) == resource.digest, key


@given(st.dictionaries(KEYS, SPECS, max_size=6), live_states())
def test_with_prune_the_result_is_what_is_desired(specs: dict[Key, JsonObject], live: Live) -> None:
    desired = ordered(specs)
    found = diff(desired, live, project="work", prune=True)
    assert found.orphans == ()
    after = carried_out(live, found)
    assert {key: spec_digest(live.spec) for key, live in after.items()} == {
        key: resource.digest for key, resource in desired.items()
    }


@given(st.dictionaries(KEYS, SPECS, max_size=6), live_states())
def test_without_prune_nothing_is_deleted_and_the_rest_is_listed(
    specs: dict[Key, JsonObject], live: Live
) -> None:
    found = diff(ordered(specs), live, project="work")
    assert {change.action for change in found.changes} <= {"create", "update"}
    assert {orphan.key for orphan in found.orphans} == live.keys() - specs.keys()


@given(st.dictionaries(KEYS, SPECS, max_size=6), live_states())
def test_dependencies_come_first_and_deletions_last_in_reverse(
    specs: dict[Key, JsonObject], live: Live
) -> None:
    found = diff(ordered(specs), live, project="work", prune=True)
    ranks = [(_is_deletion(c), KINDS.index(c.key.kind)) for c in found.changes]
    assert ranks == sorted(ranks, key=lambda rank: (rank[0], -rank[1] if rank[0] else rank[1]))


def _is_deletion(change: Change) -> bool:
    return change.action in ("delete", "forget")


@given(live_states())
def test_what_others_own_is_a_conflict_and_never_changed(live: Live) -> None:
    foreign = {key: replace(r, owner="other", is_there=True) for key, r in live.items()}
    desired = ordered({key: {"tags": {"new": 1}} for key in foreign})
    found = diff(desired, foreign, project="work", prune=True)
    assert found.changes == ()
    assert found.orphans == ()
    assert {(c.key, c.code) for c in found.conflicts} == {(key, "AH053") for key in foreign}


def test_an_unmanaged_row_is_a_conflict_that_says_so() -> None:
    key = model("a@1")
    found = diff(
        ordered({key: {}}), {key: LiveResource(key=key, owner=None)}, project="work", prune=True
    )
    (conflict,) = found.conflicts
    assert (conflict.code, found.changes) == ("AH053", ())
    assert "no project manages it" in conflict.message


def test_what_others_manage_is_neither_pruned_nor_an_orphan() -> None:
    key = model("a@1")
    live = {key: have(key, {}, owner="other")}
    for prune in (True, False):
        found = diff({}, live, project="work", prune=prune)
        assert (found.changes, found.orphans, found.conflicts) == ((), (), ())


def test_a_protected_resource_is_not_pruned() -> None:
    key = model("a@1")
    live = {key: have(key, {}, protected=True)}
    found = diff({}, live, project="work", prune=True)
    assert found.changes == ()
    assert [(c.key, c.code) for c in found.conflicts] == [(key, "AH052")]
    (orphan,) = diff({}, live, project="work").orphans
    assert orphan.protected


def test_protection_and_deletion_can_be_changed_alone() -> None:
    key = model("a@1")
    desired = {key: want(key, {"tags": {}}, protected=True, deletion="orphan")}
    (change,) = diff(desired, {key: have(key, {"tags": {}})}, project="work").changes
    assert [(f.path, f.after) for f in change.fields] == [
        ("protected", True),
        ("deletion", "orphan"),
    ]


def test_a_renamed_resource_is_not_deleted_and_created() -> None:
    old, new = model("old@1"), model("new@1")
    live = {old: have(old, {"tags": {}})}
    desired = {new: want(new, {"tags": {}}, renamed_from="old")}
    found = diff(desired, live, project="work", prune=True)
    assert [(c.action, c.key, c.old_key) for c in found.changes] == [("rename", new, old)]
    assert diff(desired, carried_out(live, found), project="work", prune=True).changes == ()


def test_a_version_of_a_model_can_be_renamed() -> None:
    old, new = model("a@1"), model("b@2")
    desired = {new: want(new, {}, renamed_from="a@1")}
    (change,) = diff(desired, {old: have(old, {})}, project="work").changes
    assert (change.action, change.old_key) == ("rename", old)


@pytest.mark.parametrize(
    "live",
    [
        {},
        {model("old@1"): have(model("old@1"), {}, owner="other")},
        {model("old@1"): LiveResource(key=model("old@1"), owner=None)},
        {model("old@1"): have(model("old@1"), {}, is_there=False)},
    ],
    ids=["absent", "foreign", "unmanaged", "deleted"],
)
def test_what_cannot_be_renamed_is_created(live: Live) -> None:
    new = model("new@1")
    found = diff({new: want(new, {}, renamed_from="old")}, live, project="work")
    assert [(c.action, c.key) for c in found.changes] == [("create", new)]


def test_a_name_that_is_still_declared_is_not_taken_away() -> None:
    old, new = model("old@1"), model("new@1")
    desired = {old: want(old, {}), new: want(new, {}, renamed_from="old")}
    found = diff(desired, {old: have(old, {})}, project="work", prune=True)
    assert [(c.action, c.key) for c in found.changes] == [("create", new)]


def test_one_resource_is_renamed_once() -> None:
    old = model("old@1")
    desired = {model(n): want(model(n), {}, renamed_from="old") for n in ("a@1", "b@1")}
    live = {old: have(old, {})}
    found = diff(desired, live, project="work", prune=True)
    assert [c.action for c in found.changes] == ["rename", "create"]
    assert diff(desired, carried_out(live, found), project="work").changes == ()


def test_an_ignored_field_is_left_as_it_is() -> None:
    key = model("a@1")
    live = {key: have(key, {"tags": {"a": 1}, "description": "old"}, ignore=("tags",))}
    desired = {key: want(key, {"tags": {}, "description": "new"}, ignore=("tags",))}
    (change,) = diff(desired, live, project="work").changes
    assert change.after == {"tags": {"a": 1}, "description": "new"}
    assert [field.path for field in change.fields] == ["description"]


def test_drift_of_an_ignored_field_is_no_change() -> None:
    key = model("a@1")
    spec: JsonObject = {"tags": {}, "description": "x"}
    live_spec = {**spec, "tags": {"by": "hand"}}
    drifted = have(key, spec, is_drifted=True, live_spec=live_spec, ignore=("tags",))
    found = diff({key: want(key, spec, ignore=("tags",))}, {key: drifted}, project="work")
    assert found.changes == ()


def test_drift_beside_an_ignored_field_is_repaired_and_the_field_kept() -> None:
    key = model("a@1")
    spec: JsonObject = {"tags": {}, "description": "x"}
    drifted = have(key, spec, is_drifted=True, live_spec={"tags": {"b": 1}, "description": "y"})
    (change,) = diff(
        {key: want(key, spec, ignore=("tags",))}, {key: drifted}, project="work"
    ).changes
    assert change.after == {"tags": {"b": 1}, "description": "x"}
    assert change.is_drift


def test_drift_that_no_document_shows_is_a_change_too() -> None:
    key = model("a@1")
    live = {key: have(key, {"tags": {}}, is_drifted=True)}
    (change,) = diff({key: want(key, {"tags": {}})}, live, project="work").changes
    assert (change.action, change.is_drift) == ("update", True)
    assert change.fields


def test_a_row_deleted_outside_of_apply_is_made_again() -> None:
    key = model("a@1")
    live = {key: have(key, {"tags": {}}, is_there=False)}
    (change,) = diff({key: want(key, {"tags": {}})}, live, project="work").changes
    assert (change.action, change.is_drift) == ("create", True)
    assert change.reason == "it was deleted outside of apply"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"a": 1}, {"a": True}),
        ({"a": 0}, {"a": False}),
        ({"a": [1, 0]}, {"a": [True, False]}),
        ({}, {"a": None}),
        ({"a": None}, {}),
        ({"a": {"b": None}}, {"a": {}}),
        ({"a": "1"}, {"a": 1}),
        ({"a": []}, {"a": {}}),
        ({"a": {}}, {"a": None}),
    ],
)
def test_values_that_json_tells_apart_differ(before: JsonObject, after: JsonObject) -> None:
    assert field_changes(before, after)


@given(SPECS, SPECS)
def test_documents_have_no_field_changes_exactly_when_they_are_equal(
    a: JsonObject, b: JsonObject
) -> None:
    assert (field_changes(a, b) == ()) == (spec_digest(a) == spec_digest(b))
    assert field_changes(a, a) == ()
