"""Plan, apply, drift and history once more, through a pooler in transaction mode.

A few of those tests run here, by name; `pytest --pooler tests/reconcile` runs every one so, and
so does `-m campaign`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reconcile import test_drift
from tests.reconcile.test_adopt import test_another_project_is_told_of_its_loss  # noqa: F401
from tests.reconcile.test_apply import (  # noqa: F401  # pytest finds them here
    test_a_merge_of_a_merge_is_made_in_one_apply,
    test_a_plan_from_an_older_revision_is_refused,
    test_a_revision_says_what_changed_before_and_after,
    test_an_alias_moves_between_versions_and_its_history_stays,
    test_destroy_takes_all_of_this_project_and_nothing_else,
    test_everything_declared_is_created_and_then_there_is_nothing_to_do,
    test_of_two_applies_at_once_one_wins_and_the_other_is_stale,
    test_prune_deletes_what_left_the_manifest,
    test_two_projects_at_once_cannot_both_take_a_name,
)
from tests.reconcile.test_drift import applied  # noqa: F401  # a fixture
from tests.reconcile.test_history import (  # noqa: F401
    story,
    test_a_rollback_restores_what_was,
    test_an_alias_is_known_as_of_a_date,
)
from tests.reconcile.test_saved import (  # noqa: F401
    saved,
    test_a_plan_is_applied_once,
    test_an_apply_in_between_is_told_with_what_it_touched,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("what", ["models.tags", "a member deleted", "caches.quotas"])
def test_a_change_from_outside_is_noticed_and_repaired(
    applied: Any,  # noqa: F811
    what: str,
) -> None:
    test_drift.test_a_change_from_outside_is_noticed_and_repaired(
        applied, test_drift.TAMPERINGS[what]
    )


@pytest.mark.campaign
def test_all_of_it_works_through_the_pooler() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--pooler", "tests/reconcile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
