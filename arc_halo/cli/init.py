"""`arc-halo init`: a small commented project to begin with."""

from __future__ import annotations

import json
import shlex
from importlib import resources
from pathlib import Path

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.cli.overwriting import refuse_existing
from arc_halo.errors import InvalidInputError

FILES = {
    "arc_halo.yaml": "arc_halo.yaml",
    "reactors/example.yaml": "reactor.yaml",
    ".gitignore": "gitignore",
    ".env.example": "env.example",
}


@click.command("init")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), default=Path())
@click.option("--name", help="The project's name; the directory's own name if left out.")
@click.pass_obj
def init(invocation: Invocation, directory: Path, name: str | None) -> None:
    """Write a small commented project into DIRECTORY. Files that are there are never touched.

    \b
    Examples:
      arc-halo init
      arc-halo init my-models --name my-models
    """
    from arc_halo.names import is_name
    from arc_halo.reconcile.report import as_json

    project = name or _name_of(directory.resolve().name)
    if not is_name(project):
        raise InvalidInputError(
            f"{project!r} is not a name",
            hint="use small letters, digits, '.', '_' and '-': `--name my-models`",
            code="AH006",
        )
    refuse_existing(directory / "arc_halo.yaml", hint="edit it, or name another directory")
    written = [
        str(directory / target)
        for target, template in FILES.items()
        if _write(directory / target, template, project)
    ]
    following = "cd " + shlex.quote(str(directory)) + " && " if directory != Path() else ""
    text = "\n".join([*(f"+ {path}" for path in written), f"Next: {following}arc-halo plan"])
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json({"project": project, "files": written}),
        markdown=lambda: text,
    )


def _write(path: Path, template: str, project: str) -> bool:
    if path.exists():
        return False
    text = resources.files("arc_halo").joinpath("templates", template).read_text("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    # In quotes: a name such as `123` would else be a number.
    path.write_text(text.replace("PROJECT_NAME", json.dumps(project)), encoding="utf-8")
    return True


def _name_of(text: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in text.lower()).strip("-")
