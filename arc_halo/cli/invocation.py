"""What every command is told by the options that all commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from arc_halo.cli.console import Console, printable
from arc_halo.config import PROJECT_FILE, find_project
from arc_halo.errors import UsageError

if TYPE_CHECKING:
    from arc_halo.project import Project

INTERRUPTED = 130
"""The exit code after Ctrl-C."""

DATABASE_VARIABLES = ("ARC_HALO_DATABASE_URL", "NEON_DATABASE_URL")

Output = Literal["text", "json", "markdown"]


@dataclass(kw_only=True)
class Invocation:
    """The shared options of one run of the program."""

    project: Path | None = None
    database_url: str | None = None
    env: str | None = None
    output: Output = "text"
    no_color: bool = False
    quiet: bool = False
    allow_path: tuple[Path, ...] = ()
    _console: Console | None = field(default=None, repr=False)

    @property
    def console(self) -> Console:
        if self._console is None:
            self._console = Console(colour=False if self.no_color else None, quiet=self.quiet)
        return self._console

    @property
    def project_directory(self) -> Path | None:
        """The directory asked for, or the nearest one upwards with a manifest."""
        if self.project is not None:
            return self.project
        try:
            return find_project(Path.cwd())
        except FileNotFoundError as exc:
            raise UsageError(
                "the current directory does not exist any more", hint="change into another one"
            ) from exc

    def open(
        self,
        *,
        needs_manifest: bool = True,
        needs_database: bool = False,
        executor: str | None = None,
        rereads: bool = False,
        env: str | None = None,
        plugins_from: str | None = None,
    ) -> Project:
        """The project these options name. Nothing is started yet.

        What `needs_database` wants a manifest's, one that is named, or the embedded one that is
        there already: a command that only reads must not make a new database in whatever directory
        it is run. `env` is the environment where nobody names one.
        """
        from arc_halo.project import Project

        if needs_database:
            named = (self.database_url, *map(os.environ.get, DATABASE_VARIABLES))
            needs_manifest = not any(named)
        directory = self.project_directory
        has_own = needs_database and _has_embedded(directory or Path.cwd())
        needs_manifest = needs_manifest and not has_own
        if needs_manifest and (directory is None or not (directory / PROJECT_FILE).is_file()):
            where = "here or in a directory above" if directory is None else f"in {directory}"
            raise UsageError(
                f"there is no {PROJECT_FILE} {where}",
                hint="run `arc-halo init` to begin a project, or name one with `--project DIR`"
                + (", or a database with `--database-url URL`" if needs_database else ""),
            )
        return Project(
            directory or Path.cwd(),
            database_url=self.database_url,
            allow_paths=self.allow_path,
            waiting=self.console.note,
            executor=executor,
            rereads=rereads,
            env=self.env if self.env is not None or "ARC_HALO_ENV" in os.environ else env,
            plugins_from=plugins_from,
        )


def _has_embedded(directory: Path) -> bool:
    """Whether the directory has a bundled server's database."""
    from arc_halo.bundled.place import Place

    return Place(directory).data.is_dir()


def _into_invocation(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value not in (None, (), False) and parameter.name is not None:
        setattr(context.ensure_object(Invocation), parameter.name, value)


def shared_options() -> list[click.Option]:
    """The options every command takes, new each time since a command owns its own."""

    def option(*declarations: str, **attributes: Any) -> click.Option:
        return click.Option(
            declarations, expose_value=False, callback=_into_invocation, **attributes
        )

    directory = click.Path(exists=True, file_okay=False, path_type=Path)
    return [
        option("--project", type=directory, help="The project's directory."),
        option("--database-url", metavar="URL", help="The database; `embedded` for the bundled."),
        option(
            "--env",
            metavar="NAME",
            help="The environment: overlays/NAME.yaml is merged into the manifest.",
        ),
        option(
            "--output",
            type=click.Choice(["text", "json", "markdown"]),
            help="The form of the result.",
        ),
        option(
            "--allow-path",
            type=directory,
            multiple=True,
            help="A directory outside of the project that paths may lead into.",
        ),
        option("--no-color", is_flag=True, help="No colours; NO_COLOR does the same."),
        option("--quiet", is_flag=True, help="Results and errors only."),
    ]


def add_shared_options(command: click.Command) -> None:
    """Give `command`, and every command below it, the shared options."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            add_shared_options(inner)
    taken = {text for parameter in command.params for text in parameter.opts}
    command.params.extend(o for o in shared_options() if not taken & set(o.opts))


def render(
    invocation: Invocation,
    *,
    text: Callable[[], None],
    json: Callable[[], str],
    markdown: Callable[[], str],
) -> None:
    """Print a result in the form asked for."""
    if invocation.output == "json":
        invocation.console.print(json())
    elif invocation.output == "markdown":
        invocation.console.print(markdown().rstrip("\n"))
    else:
        text()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be."""
    shown = [[printable(str(cell), one_line=True) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_markdown_cell, row)) + " |" for row in lines)


def _markdown_cell(cell: object) -> str:
    return printable(str(cell), one_line=True).replace("|", "\\|")
