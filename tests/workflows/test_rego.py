"""The policy that the page shows speaks of what a plan has.

No Rego is run: what it names is held to the published schema, and to the documents of models.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from arc_halo.manifest.documents import ModelSpec
from arc_halo.reconcile.saved import published_schema
from tests.workflows.runner import ROOT

PAGE = (ROOT / "docs" / "how-to" / "policies.md").read_text()
POLICY = re.findall(r"```text file=production.rego\n(.*?)```", PAGE, re.DOTALL)[0]
SCHEMA = published_schema("plan")
PATHS = sorted(set(re.findall(r"\b(?:each|input)(?:\.\w+)+", POLICY)))


def properties(path: list[str]) -> dict[str, Any]:
    """The schema of what a path leads to."""
    root, *names = path
    schema = SCHEMA if root == "input" else SCHEMA["$defs"]["resource_change"]
    for name in names:
        schema = schema["properties"][name]
    return schema


@pytest.mark.parametrize("path", PATHS)
def test_every_field_that_the_policy_names_is_in_a_plan(path):
    names = path.split(".")
    if names[:3] == ["each", "change", "before"] and len(names) > 3:
        assert names[3] in {field.name for field in dataclasses.fields(ModelSpec)}
        names = names[:3]
    assert properties(names)


def test_every_word_that_the_policy_compares_with_is_one_of_a_plans():
    assert "each" in POLICY
    assert "model" in properties(["each", "kind"])["enum"]
    assert ["delete"] in properties(["each", "change", "actions"])["enum"]
    assert set(re.findall(r'"(\w+)"', POLICY)) == {"model", "delete", "production"}
