"""The workflows that users copy, and our action: every command of every step is run.

What cannot be real here is GitHub: `gh` stands in for it on PATH, keeps comments and issues in a
file, and notes what it is asked. The actions of others give what the test says: a branch of a
database is the test's own. Bash, Git, jq, Arc-Halo and PostgreSQL are themselves.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import psycopg
import pytest
import yaml

import arc_halo
from tests.workflows.runner import ROOT, Runner, base_environment

EXAMPLES = ROOT / "examples" / "github" / "workflows"

EVIL = "import pathlib; pathlib.Path('called').touch()\n"

COMMON = {
    "GITHUB_REPOSITORY": "octo/models",
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_RUN_ID": "7",
    "GITHUB_ACTOR": "octo",
}
MODELS = {"a@1": {"type": "other"}, "b@1": {"type": "other"}}


class Repository:
    """A repository with a project, on a database, and the GitHub that it is on."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.url = url
        self.temp = home / "temp"
        self.workspace = home / "workspace"
        self.state = home / "github.json"
        self.state.write_text(json.dumps({"asked": [], "comments": [], "issues": []}))
        self.deleted: list[str] = []
        self.uploaded: list[str] = []
        self._install()
        self.workspace.mkdir()
        self.write({"models": MODELS, "settings": {"prune": True}})
        (self.workspace / ".gitignore").write_text(".arc-halo/\n")
        self.git("init", "-q", "-b", "main")
        self.merge()

    def write(self, manifest: dict[str, object]) -> None:
        text = yaml.safe_dump({"version": 1, "project": "work", **manifest}, sort_keys=False)
        (self.workspace / "arc_halo.yaml").write_text(text)

    def git(self, *arguments: str) -> None:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        subprocess.run(command, cwd=self.workspace, check=True, capture_output=True)

    def merge(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "change")
        self.git("update-ref", "refs/remotes/origin/main", "HEAD")

    @property
    def github(self) -> dict[str, list]:
        return json.loads(self.state.read_text())

    def run(self, name: str, *, head: str = "octo/models"):
        pull = {"number": 12, "head": {"repo": {"full_name": head}}}
        github = {
            "event": {"pull_request": pull},
            "repository": "octo/models",
            "run_id": "7",
            "run_attempt": "1",
            "base_ref": "main",
            "ref": "refs/heads/main",
            "token": "token",
        }
        environment = base_environment(self.temp, **COMMON, GH_STATE=str(self.state))
        environment["PATH"] = f"{self.home / 'bin'}:{environment['PATH']}"
        runner = Runner(
            workspace=self.workspace,
            temp=self.temp,
            context={
                "github": github,
                "vars": {"NEON_PROJECT_ID": "p"},
                "secrets": {"ARC_HALO_DATABASE_URL": self.url, "NEON_API_KEY": "key"},
            },
            environment=environment,
            actions={
                "actions/checkout": lambda given: {},
                "actions/setup-python": lambda given: {},
                "actions/upload-artifact": self._upload,
                "neondatabase/create-branch-action": self._branch,
                "neondatabase/delete-branch-action": self._delete,
            },
        )
        return runner.run(EXAMPLES / f"arc-halo-{name}.yml")

    def _branch(self, given):
        assert given["branch_name"] == "arc-halo-pr-12-7-1"
        assert given["expires_at"].endswith("Z")
        assert (given["role"], given["api_key"]) == ("neondb_owner", "key")
        return {"db_url": self.url, "branch_id": "br-1"}

    def _delete(self, given):
        self.deleted.append(given["branch"])
        return {}

    def _upload(self, given):
        for line in given["path"].split():
            place = Path(line).relative_to(self.temp)
            self.uploaded += [path.read_text() for path in sorted(self.temp.glob(str(place)))]
        return {}

    def _install(self) -> None:
        """The package under test in place of an installed one, and `gh`."""
        package = Path(arc_halo.__file__).parents[1]
        venv = self.temp / "arc-halo" / "venv" / "bin"
        venv.mkdir(parents=True)
        start = f"import sys; sys.path.insert(0, '{package}')"
        run = "from arc_halo.cli.main import main; main()"
        (venv / "arc-halo").write_text(f"#!{sys.executable} -I\n{start}\n{run}\n")
        (venv / "arc-halo").chmod(0o755)
        (venv / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (venv / "python").chmod(0o755)
        (self.home / "bin").mkdir()
        shutil.copy(Path(__file__).parent / "gh", self.home / "bin" / "gh")


@pytest.fixture
def repository(tmp_path: Path, database: str) -> Repository:
    assert shutil.which("jq"), "the workflows need jq: install the package jq"
    return Repository(tmp_path, database)


def test_a_pull_request_is_planned_told_once_and_leaves_no_branch(repository):
    job = repository.run("plan")
    assert job.is_successful, job.log
    (comment,) = repository.github["comments"]
    assert comment["body"].startswith("<!-- arc-halo:work:- -->\n### Arc-Halo plan for `work`")
    assert "Plan: 2 to create." in comment["body"]
    assert "model/a@1" in job.summary
    assert json.loads(repository.uploaded[0])["summary"]["create"] == 2
    assert repository.deleted == ["br-1"]

    # Somebody else says the marker, the plan moves on, and a plugin comes along.
    state = repository.github
    state["comments"].insert(0, {"id": 1, "user": {"login": "eve"}, "body": comment["body"]})
    repository.state.write_text(json.dumps(state))
    (repository.workspace / "evil.py").write_text(EVIL)
    repository.write({"models": {**MODELS, "c@1": {"type": "other"}}, "plugins": ["evil.py"]})
    job = repository.run("plan")
    assert job.is_successful, job.log
    theirs, ours = repository.github["comments"]
    assert "Plan: 3 to create." in ours["body"]
    assert "evil.py is new, and not loaded: origin/main does not list it" in ours["body"]
    assert theirs["body"] == comment["body"]
    assert not (repository.workspace / "called").exists()


def test_a_plan_that_fails_is_told_in_its_comment(repository):
    repository.write({"models": {"a@1": {"type": "other", "</pre><h1>": "x"}}})
    job = repository.run("plan")
    assert [step.code for step in job.steps if step.code] == [4]
    (comment,) = repository.github["comments"]
    first, second, *_ = comment["body"].splitlines()
    assert first == "<!-- arc-halo:work:- -->"
    assert second == "### arc-halo plan failed with exit code 4"
    assert "unknown field '&lt;/pre>" in comment["body"]
    assert comment["body"].count("</pre>") == 1
    assert repository.deleted == ["br-1"]


def test_a_fork_gets_a_validation_and_no_plan(repository):
    assert repository.run("plan", head="eve/models").is_skipped
    assert repository.github["asked"] == []
    job = repository.run("validate", head="eve/models")
    assert job.is_successful, job.log
    assert "2 resources in 1 file: valid." in job.summary


def test_what_is_merged_is_applied_as_planned_and_reported_or_refused(repository):
    job = repository.run("apply")
    assert job.is_successful, job.log
    assert "Applied revision 1 of work: 2 created." in job.summary
    assert "### Revision 1 of `work`" in job.summary
    assert "https://github.com/octo/models/actions/runs/7" in job.summary
    with psycopg.connect(repository.url) as conn:
        assert conn.execute("SELECT count(*) FROM models").fetchone() == (2,)
    assert len(repository.uploaded) == 4

    job = repository.run("apply")
    assert [step.is_skipped for step in job.steps[2:4]] == [True, True]
    assert "Nothing to do" in job.summary

    repository.write({"models": {"a@1": MODELS["a@1"]}, "settings": {"prune": True}})
    repository.merge()
    job = repository.run("apply")
    assert job.is_successful, job.log
    assert "Deletions: 1" in job.summary
    assert job.steps[2].outputs["revision"] == "2"

    repository.write({"models": {}, "settings": {"prune": True}})
    repository.merge()
    job = repository.run("apply")
    assert not job.is_successful
    assert "failed with exit code 5" in job.summary
    with psycopg.connect(repository.url) as conn:
        assert conn.execute("SELECT count(*) FROM models").fetchone() == (1,)


def test_drift_opens_one_issue_brings_it_up_to_date_and_closes_it(repository):
    assert repository.run("apply").is_successful
    job = repository.run("drift")
    assert job.is_successful, job.log
    assert repository.github["issues"] == []

    with psycopg.connect(repository.url, autocommit=True) as conn:
        conn.execute("UPDATE models SET description = 'by hand' WHERE model_name = 'a'")
        job = repository.run("drift")
        assert job.is_successful, job.log
        (issue,) = repository.github["issues"]
        assert "model/a@1" in issue["body"]
        conn.execute("UPDATE models SET description = 'by hand' WHERE model_name = 'b'")
        repository.run("drift")
        (issue,) = repository.github["issues"]
        assert issue["open"]
        assert "model/b@1" in issue["body"]
        conn.execute("UPDATE models SET description = NULL")
    assert repository.run("drift").is_successful
    (issue,) = repository.github["issues"]
    assert not issue["open"]


def test_what_is_installed_is_what_the_inputs_say(tmp_path):
    """The installation is pip's own, of a wheel that needs nothing."""
    wheel = tmp_path / "arc_halo-9.9.9-py3-none-any.whl"
    about = "arc_halo-9.9.9.dist-info"
    files = {
        "arc_halo.py": "def main():\n    print('nine')\n",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: arc-halo\nVersion: 9.9.9\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[console_scripts]\narc-halo=arc_halo:main\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        listed = [f"{name},," for name in (*files, f"{about}/RECORD")]
        archive.writestr(f"{about}/RECORD", "\n".join(listed))
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (script,) = [s["run"] for s in action["runs"]["steps"] if s.get("name") == "Install Arc-Halo"]

    def install(source: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=base_environment(tmp_path, RUNNER_TEMP=str(tmp_path), VERSION="", SOURCE=source),
            capture_output=True,
            text=True,
            check=False,
        )

    (tmp_path / "pip.py").write_text("raise SystemExit('the checkout was run')")
    assert install("").returncode == 64
    done = install(str(wheel))
    assert done.returncode == 0, done.stderr
    program = tmp_path / "arc-halo" / "venv" / "bin" / "arc-halo"
    assert subprocess.run([program], check=True, capture_output=True).stdout == b"nine\n"
