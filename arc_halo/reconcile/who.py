"""Who applies, as a revision records it: a person, or the CI run that acts for one."""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from arc_halo._version import __version__
from arc_halo.reconcile.git import git_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who applies, by which program, from where; `git_commit` is None outside of a repository."""

    actor: str
    host: str
    tool_version: str
    git_commit: str | None
    git_dirty: bool | None
    run_url: str | None


def origin(project_directory: Path) -> Origin:
    """The origin of what is applied now from that directory."""
    git = git_state(project_directory)
    return Origin(
        actor=actor(),
        host=socket.gethostname(),
        tool_version=__version__,
        git_commit=git.commit if git else None,
        git_dirty=git.is_dirty if git else None,
        run_url=run_url(),
    )


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
