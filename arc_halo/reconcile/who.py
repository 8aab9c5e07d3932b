"""Who applies, as a revision records it: a person, or the CI run that acts for one."""

from __future__ import annotations

import getpass
import os


def actor() -> str:
    """Whom the CI system names, or the login name."""
    named = os.environ.get("GITHUB_ACTOR") or os.environ.get("GITLAB_USER_LOGIN")
    if named:
        return named
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def run_url() -> str | None:
    """The page of the CI run, on GitHub and GitLab."""
    server = os.environ.get("GITHUB_SERVER_URL")
    repository = os.environ.get("GITHUB_REPOSITORY")
    run = os.environ.get("GITHUB_RUN_ID")
    if server and repository and run:
        return f"{server}/{repository}/actions/runs/{run}"
    return os.environ.get("CI_JOB_URL")
