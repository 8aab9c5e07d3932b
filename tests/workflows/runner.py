"""A runner of GitHub's jobs, as far as ours need one: steps in bash, files for what they say.

Everything a step's `run` does is done. Of actions, only our own is run; what another one would
give is given by the test. Expressions are names, literals, `==`, `!=`, `&&`, `||`, `!` and the
functions that tell the status.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OURS = ("./", "./.github/actions/arc-halo")

Outputs = Mapping[str, str]
Action = Callable[[Mapping[str, str]], Outputs]


@dataclass(slots=True, kw_only=True)
class Step:
    """What became of a step."""

    name: str
    code: int = 0
    outputs: dict[str, str] = field(default_factory=dict)
    output: str = ""
    is_skipped: bool = False


@dataclass(slots=True, kw_only=True)
class Job:
    """What became of a job."""

    steps: list[Step]
    summary: str
    is_skipped: bool = False

    @property
    def is_successful(self) -> bool:
        return all(step.code == 0 for step in self.steps)

    @property
    def log(self) -> str:
        return "\n".join(step.output for step in self.steps)


@dataclass(kw_only=True)
class Runner:
    """Runs jobs in `workspace`; `actions` give the outputs of what others wrote, by name."""

    workspace: Path
    temp: Path
    context: dict[str, Any]
    environment: dict[str, str]
    actions: Mapping[str, Action]

    def run(self, workflow: Path) -> Job:
        """The one job of a workflow."""
        (job,) = yaml.safe_load(workflow.read_text())["jobs"].values()
        files = self.temp / "files"
        files.mkdir(parents=True, exist_ok=True)
        (files / "summary").write_text("")
        scope = {**self.context, "steps": {}, "runner": {"temp": str(self.temp)}}
        if "if" in job and not evaluate(job["if"], scope, failed=False):
            return Job(steps=[], summary="", is_skipped=True)
        steps: list[Step] = []
        for number, step in enumerate(job["steps"]):
            failed = any(each.code for each in steps)
            steps.append(self._step(step, scope, failed, files / str(number)))
        return Job(steps=steps, summary=(files / "summary").read_text())

    def _step(self, step: dict[str, Any], scope: dict[str, Any], failed: bool, file: Path) -> Step:
        done = Step(name=step.get("name") or step.get("uses") or step["run"])
        if not evaluate(step.get("if", "success()"), scope, failed=failed):
            done.is_skipped = True
        else:
            env = {k: expand(str(v), scope) for k, v in step.get("env", {}).items()}
            given = {k: expand(str(v), scope) for k, v in step.get("with", {}).items()}
            if "run" in step:
                where = expand(step.get("working-directory", "."), scope)
                self._script(step, where, env, done, file)
            elif (name := step["uses"].partition("@")[0]) in OURS:
                self._composite(given, env, done, file)
            else:
                done.outputs = dict(self.actions[name](given))
        scope["steps"][step.get("id", str(file))] = {"outputs": done.outputs}
        return done

    def _composite(
        self, given: Mapping[str, str], env: dict[str, str], done: Step, file: Path
    ) -> None:
        """Our action: its steps with its inputs, its outputs from theirs."""
        action = yaml.safe_load((ROOT / "action.yml").read_text())
        assert given.keys() <= action["inputs"].keys()
        inputs = {
            name: given.get(name, i.get("default", "")) for name, i in action["inputs"].items()
        }
        scope: dict[str, Any] = {"inputs": inputs, "steps": {}}
        inner = Runner(
            workspace=self.workspace,
            temp=self.temp,
            context={},
            environment={**self.environment, **env},
            actions=self.actions,
        )
        for number, step in enumerate(action["runs"]["steps"]):
            made = inner._step(step, scope, bool(done.code), file.with_suffix(f".{number}"))
            done.code = done.code or made.code
            done.output += made.output
        for name, output in action["outputs"].items():
            done.outputs[name] = expand(output["value"], scope)

    def _script(
        self, step: dict[str, Any], where: str, env: dict[str, str], done: Step, file: Path
    ) -> None:
        file.write_text(step["run"])
        said = file.with_suffix(".output")
        said.write_text("")
        options = ["--noprofile", "--norc", "-eo", "pipefail"] if "shell" in step else ["-e"]
        finished = subprocess.run(
            ["bash", *options, str(file)],
            cwd=self.workspace / where,
            env={
                **self.environment,
                **env,
                "GITHUB_OUTPUT": str(said),
                "GITHUB_STEP_SUMMARY": str(self.temp / "files" / "summary"),
                "RUNNER_TEMP": str(self.temp),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        done.code, done.output = finished.returncode, finished.stdout
        done.outputs = dict(line.split("=", 1) for line in said.read_text().splitlines())


def expand(text: str, scope: Mapping[str, Any]) -> str:
    return re.sub(r"\$\{\{(.*?)\}\}", lambda m: _text(_value(m[1], scope, False)), text)


def evaluate(condition: str, scope: Mapping[str, Any], *, failed: bool) -> bool:
    """An `if`: like GitHub, false after a failure unless it asks for the status itself."""
    condition = condition.strip().removeprefix("${{").removesuffix("}}")
    if failed and not re.search(r"\b(always|cancelled|failure)\(\)", condition):
        return False
    return bool(_value(condition, scope, failed))


def _value(expression: str, scope: Mapping[str, Any], failed: bool) -> Any:
    status = {"always": True, "cancelled": False, "failure": failed, "success": not failed}
    tokens = re.findall(r"'[^']*'|[\w.-]+(?:\(\))?|&&|\|\||==|!=|!", expression)
    assert "".join(tokens) == re.sub(r"\s(?=(?:[^']*'[^']*')*[^']*$)", "", expression), expression
    words = {"&&": "and", "||": "or", "==": "==", "!=": "!=", "!": "not"}

    def word(token: str) -> str:
        if token in words or token.startswith("'"):
            return words.get(token, token)
        if token.endswith("()"):
            return repr(status[token[:-2]])
        found: Any = scope
        for name in token.split("."):
            found = found.get(name, "") if isinstance(found, Mapping) else ""
        return repr(found)

    return eval(" ".join(word(token) for token in tokens), {"__builtins__": {}})


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def base_environment(temp: Path, **more: str) -> dict[str, str]:
    """What a runner's shell has: nothing of whoever runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**kept, "HOME": str(temp), "GITHUB_ACTION_PATH": str(temp / "action"), **more}
