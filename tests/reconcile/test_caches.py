"""Caches as resources: created, changed, kept and deleted like the others."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from arc_halo.errors import RefusedError
from arc_halo.inference.policies import KVPolicy, kv_policy
from arc_halo.reconcile.changes import Plan
from arc_halo.reconcile.markdown import plan_markdown
from arc_halo.reconcile.showing import describe
from arc_halo.store import cache_policies
from arc_halo.store.connection import connect

Json = dict[str, Any]


@pytest.fixture
def manifest() -> Json:
    return {
        "inference": {
            "kv_cache": {
                "budget": "10GiB",
                "ttl": "7d",
                "quota": "1GiB",
                "quotas": {"acme": "2GiB"},
            },
            "activation_cache": {"ttl": "30d"},
        }
    }


def actions(plan: Plan) -> list[str]:
    return [f"{change.action} {change.key}" for change in plan.changes]


def test_caches_are_created_and_then_there_is_nothing_to_do(workshop, manifest):
    assert actions(workshop.apply(manifest).plan) == [
        "create inference/activation_cache",
        "create inference/kv_cache",
    ]
    assert not workshop.plan().has_changes
    with connect(workshop.url) as conn:
        found = cache_policies.find(conn, "kv_cache")
        assert found is not None
        assert (found.block_tokens, found.codec) == (64, "planes")
        assert kv_policy(conn) == KVPolicy(
            budget_bytes=10 * 2**30,
            ttl=timedelta(days=7),
            quota_bytes=2**30,
            quotas={"acme": 2 * 2**30},
        )
        captured = cache_policies.find(conn, "activation_cache")
        assert captured is not None
        assert (captured.budget_bytes, captured.ttl) == (2 * 2**30, timedelta(days=30))


def test_what_is_not_declared_has_the_usual_budget(workshop):
    workshop.apply({})
    with connect(workshop.url) as conn:
        assert cache_policies.find(conn, "kv_cache") is None
        assert kv_policy(conn) == KVPolicy(budget_bytes=4 * 2**30)


def test_fields_are_changed_in_place_and_told_one_by_one(workshop, manifest):
    workshop.apply(manifest)
    manifest["inference"]["kv_cache"] |= {"budget": "20GiB", "quotas": {"beta": "1GiB"}}
    del manifest["inference"]["kv_cache"]["ttl"]
    (change,) = workshop.apply(manifest).plan.changes
    assert sorted((f.path, f.before, f.after) for f in change.fields) == [
        ("budget", 10 * 2**30, 20 * 2**30),
        ("quotas.acme", 2 * 2**30, None),
        ("quotas.beta", None, 2**30),
        ("ttl", 7 * 86400, None),
    ]
    assert not workshop.plan().has_changes


def test_a_plan_says_sizes_and_times_as_they_are_written(workshop, manifest):
    workshop.apply(manifest)
    manifest["inference"]["kv_cache"] |= {"budget": "100GiB", "quotas": {}}
    manifest["inference"]["activation_cache"]["ttl"] = "1w"
    workshop.write(manifest)
    told = plan_markdown(workshop.plan())
    assert '`budget: "10GiB" -> "100GiB"`' in told
    assert '`quotas.acme: "2GiB" -> null`' in told
    assert '`ttl: "30d" -> "7d"`' in told


def test_a_cache_that_left_the_manifest_is_deleted_only_with_prune(workshop, manifest):
    workshop.apply(manifest)
    del manifest["inference"]["kv_cache"]
    workshop.write(manifest)
    assert [str(orphan.key) for orphan in workshop.plan().orphans] == ["inference/kv_cache"]
    report = workshop.apply(manifest, prune=True)
    assert actions(report.plan) == ["delete inference/kv_cache"]
    assert workshop.value("SELECT count(*) FROM cache_policies") == 1


def test_a_protected_cache_is_not_deleted(workshop, manifest):
    manifest["inference"]["kv_cache"]["protected"] = True
    workshop.apply(manifest)
    with pytest.raises(RefusedError, match="inference/kv_cache is protected"):
        workshop.apply({}, prune=True)


def test_a_field_that_is_ignored_is_left_alone(workshop, manifest):
    manifest["inference"]["kv_cache"]["ignore"] = ["budget"]
    workshop.apply(manifest)
    workshop.sql("UPDATE cache_policies SET budget_bytes = 7000000 WHERE name = 'kv_cache'")
    assert not workshop.plan().has_changes
    workshop.sql("UPDATE cache_policies SET ttl = NULL WHERE name = 'kv_cache'")
    workshop.apply(manifest)
    assert workshop.sql(
        "SELECT budget_bytes, ttl = interval '7 days' FROM cache_policies WHERE name = 'kv_cache'"
    ) == [(7000000, True)]


def test_a_cache_belongs_to_one_project(workshop, open_workshop, manifest):
    workshop.apply(manifest)
    other = open_workshop("other")
    other.write({"project": "other", "inference": {"kv_cache": {}}})
    (conflict,) = other.plan().conflicts
    assert conflict.message == "inference/kv_cache belongs to the project 'work'"
    assert conflict.hint is not None
    assert conflict.hint.endswith("a database has one kv_cache")


def test_a_cache_that_is_let_go_is_nobodys(workshop, manifest):
    manifest["inference"]["kv_cache"]["deletion"] = "orphan"
    workshop.apply(manifest)
    workshop.apply({}, prune=True)
    workshop.write(manifest)
    (conflict,) = workshop.plan().conflicts
    assert conflict.message == "inference/kv_cache exists, and no project manages it"


def test_a_cache_is_shown(workshop, manifest):
    workshop.apply(manifest)
    with connect(workshop.url) as conn:
        found = describe(conn, "inference", "kv_cache")
    assert found is not None
    assert found["address"] == "inference/kv_cache"
    assert found["document"]["budget"] == 10 * 2**30


def test_destroy_takes_caches_too(workshop, manifest):
    workshop.apply(manifest)
    workshop.destroy()
    assert workshop.value("SELECT count(*) FROM cache_policies") == 0
