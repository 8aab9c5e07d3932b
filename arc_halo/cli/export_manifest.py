"""`arc-halo export-manifest`: a manifest written from the database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.cli.overwriting import refuse_existing

if TYPE_CHECKING:
    from arc_halo.reconcile.exporting import ExportedManifest

SUFFIXES = (".yaml", ".yml")


@click.command("export-manifest")
@click.option("--name", metavar="PROJECT", help="Another project than that of the manifest here.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Write it here instead of to the output: arc_halo.yaml in DIR, or FILE.",
)
@click.option("--unmanaged", is_flag=True, help="Declare what no project manages, too.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@click.pass_obj
def export_manifest(
    invocation: Invocation, name: str | None, out: Path | None, unmanaged: bool, force: bool
) -> None:
    """Write a manifest of what the project manages in the database, which plans to no changes.

    Weights and tokenizers keep the paths that they were read from, in the project's directory.
    Plugins, settings and the database's address are those of the manifest here, if there is one.
    What `--unmanaged` adds becomes the project's by `arc-halo adopt`.

    \b
    Examples:
      arc-halo export-manifest
      arc-halo export-manifest --out . --force
      arc-halo export-manifest --name halo-demo --database-url "$URL" --out halo-demo/
      arc-halo export-manifest --unmanaged --out . --force
    """
    from arc_halo.reconcile.exporting import summary
    from arc_halo.reconcile.report import as_json

    with invocation.open(needs_database=True) as project:
        found = project.export_manifest(name=name, with_unmanaged=unmanaged)
    paths = None if out is None else _paths(found, out)
    if paths is None:
        text = found.text
    else:
        _write(paths, force=force)
        text = f"Wrote {', '.join(map(str, list(paths)[:4]))}: {summary(found)}."
    for note in (*found.notes, *_next_steps(found)):
        invocation.console.note(note, "warn")
    facts = {
        "project": found.project,
        "files": dict(found.files) if paths is None else [str(path) for path in paths],
        "resources": found.resource_count,
        "to_adopt": [str(key) for key in found.unmanaged],
        "notes": list(found.notes),
    }
    render(
        invocation,
        text=lambda: invocation.console.print(text.rstrip("\n")),
        json=lambda: as_json(facts),
        markdown=lambda: text if paths is not None else f"```yaml\n{text}```",
    )


def _paths(found: ExportedManifest, out: Path) -> dict[Path, str]:
    """What is to be written where; a FILE is told from a DIR by its name."""
    if out.suffix in SUFFIXES and not out.is_dir():
        return {out: found.text}
    return {out / label: text for label, text in found.files.items()}


def _write(files: Mapping[Path, str], *, force: bool) -> None:
    from arc_halo.formats._files import replacing

    refuse_existing(*files, force=force)
    # The project file comes last: what it includes is there then.
    for path, text in reversed(list(files.items())):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(text.encode())


def _next_steps(found: ExportedManifest) -> list[str]:
    return [f"to be adopted: arc-halo adopt {key}" for key in found.unmanaged]
