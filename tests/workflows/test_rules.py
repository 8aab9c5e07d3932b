"""What every workflow and our action keep to, whatever they do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflows.runner import OURS, ROOT

EXAMPLES = ROOT / "examples" / "github" / "workflows"
WORKFLOWS = sorted([*EXAMPLES.glob("*.yml"), *(ROOT / ".github" / "workflows").glob("*.yml")])
FILES = [ROOT / "action.yml", *WORKFLOWS]


def read(path: Path) -> dict[str, Any]:
    # All texts: to others `on` is a truth value.
    return yaml.load(path.read_text(), yaml.BaseLoader)


def steps_of(path: Path) -> Iterator[dict[str, Any]]:
    data = read(path)
    for job in data.get("jobs", {"": data.get("runs", {})}).values():
        yield from job["steps"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actions_of_others_are_pinned_to_a_commit_with_the_version_beside(path):
    for action, comment in re.findall(r"uses: (\S+)(.*)", path.read_text()):
        if action not in OURS:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+( .*)?", comment), action


def test_an_action_is_pinned_to_the_same_commit_everywhere():
    pins: dict[str, set[str]] = {}
    for path in FILES:
        for name, commit in re.findall(r"uses: ([\w/-]+)@([0-9a-f]{40})", path.read_text()):
            pins.setdefault(name, set()).add(commit)
    assert {name: len(commits) for name, commits in pins.items() if len(commits) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_expression_is_put_into_a_shell(path):
    for step in steps_of(path):
        assert "${{" not in step.get("run", ""), step


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_grants_only_to_a_job_and_never_runs_a_forks_code_with_rights(path):
    data = read(path)
    assert data["permissions"] == {}
    assert not {"pull_request_target", "workflow_run"} & data["on"].keys()
    for job in data["jobs"].values():
        assert job["permissions"]["contents"] == "read"
        assert "timeout-minutes" in job
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] == "false"


def test_secrets_are_only_where_an_environment_guards_them():
    for path in WORKFLOWS:
        for job in read(path)["jobs"].values():
            assert ("secrets." in str(job)) <= ("environment" in job), path.name


def test_an_apply_is_alone_and_is_never_cut_off():
    data = read(EXAMPLES / "arc-halo-apply.yml")
    assert data["concurrency"] == {"group": "arc-halo-production", "cancel-in-progress": "false"}


def test_the_database_is_no_input_of_the_action():
    inputs = read(ROOT / "action.yml")["inputs"]
    assert [name for name in inputs if "database" in name or "url" in name] == []
