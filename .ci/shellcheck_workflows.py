"""Run shellcheck over what the steps of workflows and of actions hand to bash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml


def main(files: list[str]) -> int:
    """The worst exit code."""
    codes = [0]
    for file in files:
        data = yaml.load(Path(file).read_text(), yaml.BaseLoader)
        for job in data.get("jobs", {"action": data.get("runs", {})}).values():
            for step in job["steps"]:
                if "run" in step:
                    sys.stdout.write(f"{file}: {step.get('name', step['run'].splitlines()[0])}\n")
                    sys.stdout.flush()
                    codes.append(_check(step["run"]))
    return max(codes)


def _check(script: str) -> int:
    command = ["shellcheck", "--shell=bash", "--enable=quote-safe-variables", "-"]
    return subprocess.run(command, input=script, text=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
