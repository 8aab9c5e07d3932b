"""Which commit a project directory is at, as a revision records it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GitState:
    commit: str
    is_dirty: bool


def git_state(directory: Path) -> GitState | None:
    """The commit checked out around `directory`, or None without git or outside a repository."""
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    return GitState(commit=commit, is_dirty=_git(directory, "status", "--porcelain", ".") != "")


def _git(directory: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *args],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
