"""`arc-halo plugin`: a new plugin, from a template that works, with the test that says so."""

from __future__ import annotations

import keyword
import re
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.cli.overwriting import refuse_existing
from arc_halo.errors import (
    InvalidInputError,
    ManifestError,
    PluginConflictError,
    PluginError,
)

if TYPE_CHECKING:
    from arc_halo.plugins import PluginManager

Kind = Literal["strategy", "codec"]

FILES = {"plugins/{name}.py": "{kind}.py", "tests/test_{name}.py": "test_{kind}.py"}
PACKAGE_FILES = {
    "halo-{dashed}/pyproject.toml": "package/pyproject.toml",
    "halo-{dashed}/README.md": "package/README.md",
    "halo-{dashed}/src/halo_{name}/__init__.py": "{kind}.py",
    "halo-{dashed}/tests/test_{name}.py": "test_{kind}.py",
}
USES = {
    "strategy": """\
reactors:
  blend:
    type: merge
    strategy: {name}
    members: [{{model: first, weight: 2}}, {{model: second, weight: 1}}]
    produces: {{model: blend, version: 1.0.0}}""",
    "codec": """\
storage:
  codec: {name}""",
}

FROM_FILE = """\
FILE = Path(__file__).parents[1] / "plugins" / "plugin_name.py"
LOADED = PluginManager.load({"plugins/plugin_name.py": FILE})
"""
FROM_PACKAGE = """\
# Found by its entry point, as in every project: install the package first.
LOADED = PluginManager.load()
"""


@click.group("plugin")
def plugin() -> None:
    """Begin plugins of your own. `arc-halo plugins` lists those that are loaded.

    \b
    Examples:
      arc-halo plugin new calm --kind strategy
      arc-halo plugin new sparse --kind codec --package
    """


@plugin.command("new")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["strategy", "codec"]),
    required=True,
    help="What it is to provide.",
)
@click.option("--package", is_flag=True, help="Write a package to install, not a single file.")
@click.option(
    "--to",
    "directory",
    metavar="DIRECTORY",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to write it; the project's directory if left out.",
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.pass_obj
def new(
    invocation: Invocation,
    name: str,
    kind: Kind,
    package: bool,
    directory: Path | None,
    force: bool,
) -> None:
    """Write a plugin that works, and a test that it keeps its contract; change it to yours.

    A file plugins/NAME.py with tests/test_NAME.py, or with --package a directory halo-NAME to
    install. What is to be added to arc_halo.yaml is printed; nothing is edited.

    \b
    Examples:
      arc-halo plugin new calm --kind strategy
      arc-halo plugin new sparse --kind codec
      arc-halo plugin new calm --kind strategy --package --to ~/packages
    """
    from arc_halo.reconcile.report import as_json

    _check_name(name)
    where = directory or _nearest(invocation)
    files = _files(name, kind, package=package)
    written = [where / file for file in files]
    label = None if package else _label(invocation, written[0], where)
    manager = _loaded(invocation)
    _check_free(manager, name, kind, label)
    _write(dict(zip(written, files.values(), strict=True)), force=force)
    add = [] if label is None or label in _listed(manager) else [label]
    facts = {"name": name, "kind": kind, "files": [str(p) for p in written], "add_plugins": add}
    lines = [*(f"+ {path}" for path in written), *_added(add), *_used(name, kind)]
    lines += _installed(written) if package else _tested(written)
    render(
        invocation,
        text=lambda: invocation.console.print("\n".join(lines)),
        json=lambda: as_json(facts),
        markdown=lambda: "```text\n" + "\n".join(lines) + "\n```",
    )


def _check_name(name: str) -> None:
    if _is_module_name(name):
        return
    guess = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    meant = f"use {guess!r}, or " if _is_module_name(guess) else ""
    raise InvalidInputError(
        f"{name!r} is not a name for a plugin",
        hint=f"{meant}small letters, digits and '_', a letter first, and no word of Python's",
        code="AH006",
    )


def _is_module_name(text: str) -> bool:
    return re.fullmatch("[a-z][a-z0-9_]{0,63}", text) is not None and not keyword.iskeyword(text)


def _nearest(invocation: Invocation) -> Path:
    """The project's directory, as it is seen from here; here if there is none."""
    project = invocation.project_directory
    return Path() if project is None or project.resolve() == Path.cwd() else project


def _loaded(invocation: Invocation) -> PluginManager:
    """The project's plugins; where those do not load, the built-in and the installed ones."""
    from arc_halo.plugins import PluginManager

    try:
        manager = invocation.open(needs_manifest=False).plugins
        assert manager.strategies
        assert manager.codecs
    except (ManifestError, PluginError) as exc:
        # A manifest may well list already what is only now to be written.
        manager = PluginManager.load()
        invocation.console.note(f"the project's own plugins were not looked at: {exc}", "warn")
    return manager


def _listed(manager: PluginManager) -> set[str]:
    """The files that the project's `plugins:` names."""
    return {PurePath(each.file).as_posix() for each in manager.providers if each.file}


def _check_free(manager: PluginManager, name: str, kind: Kind, label: str | None) -> None:
    """Raise `PluginConflictError` for a name that another has; `label` is a single file's."""
    found = (manager.strategies if kind == "strategy" else manager.codecs).get(name)
    if found is None:
        return
    provider = found.provider
    # What is to be written again may be loaded: by its file, or as a package.
    if label is None and (provider.name, provider.file) == (_distribution(name), None):
        return
    if label is not None and provider.file and PurePath(provider.file) == PurePath(label):
        return
    raise PluginConflictError(
        f"{name!r} is the name of a {kind} of {provider} already",
        hint=f"choose another; `arc-halo plugins` lists every {kind} that is loaded",
    )


def _files(name: str, kind: Kind, *, package: bool) -> dict[str, str]:
    """The texts to write by their paths, the plugin's own file first where it is a single one."""
    places = PACKAGE_FILES if package else FILES
    dashed = _distribution(name).removeprefix("halo-")
    return {
        place.format(name=name, dashed=dashed): _text(
            template.format(kind=kind), name, kind, package=package
        )
        for place, template in places.items()
    }


def _text(template: str, name: str, kind: Kind, *, package: bool) -> str:
    folder = resources.files("arc_halo").joinpath("templates", "plugin")
    text = folder.joinpath(*template.split("/")).read_text("utf-8")
    if package and FROM_FILE in text:
        text = text.replace(FROM_FILE, FROM_PACKAGE).replace("from pathlib import Path\n", "")
        text = text.replace("\n\n\nfrom", "\n\nfrom")
    meanings = {
        "PLUGIN_USE": USES[kind].format(name=name),
        "plugin_kind": kind,
        "halo-plugin-name": _distribution(name),
        "PluginName": "".join(part.capitalize() for part in name.split("_")),
        "plugin_name": name,
    }
    return re.sub("|".join(meanings), lambda word: meanings[word[0]], text)


def _distribution(name: str) -> str:
    """`halo-two-words` for `two_words`, as pip spells it."""
    return "halo-" + re.sub("_+", "-", name).strip("-")


def _label(invocation: Invocation, file: Path, where: Path) -> str:
    """The file as `plugins:` names it: from the project's directory, if it lies in there."""
    project = (invocation.project_directory or where).resolve()
    if not file.resolve().is_relative_to(project):
        project = where.resolve()
    return file.resolve().relative_to(project).as_posix()


def _write(texts: Mapping[Path, str], *, force: bool) -> None:
    refuse_existing(*texts, force=force)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _added(plugins: list[str]) -> list[str]:
    if not plugins:
        return []
    return ["", "Add to arc_halo.yaml:", "  plugins:", *(f"    - {label}" for label in plugins)]


def _used(name: str, kind: Kind) -> list[str]:
    lines = USES[kind].format(name=name).splitlines()
    return ["", "Use it in a manifest:", *(f"  {line}" for line in lines)]


def _tested(written: list[Path]) -> list[str]:
    test = shlex.quote(str(written[-1]))
    return ["", "Test it:", f"  pip install pytest hypothesis && python -m pytest {test}"]


def _installed(written: list[Path]) -> list[str]:
    root = str(written[0].parent)
    install = f"  pip install -e {shlex.quote(root + '[test]')}"
    return ["", "Install and test it:", install, f"  pytest {shlex.quote(root)}"]
