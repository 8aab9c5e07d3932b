"""The program `arc-halo`: its commands, its exit codes, and what happens to errors."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from typing import NoReturn

import click

from arc_halo._version import __version__
from arc_halo.cli.invocation import INTERRUPTED, Invocation, add_shared_options, shared_options
from arc_halo.errors import ArcHaloError, InvalidInputError
from arc_halo.names import is_storable

TERMINATED = 143
COMMANDS = {
    "init": "init.init",
    "validate": "validate.validate",
    "schema": "validate.schema",
    "render": "render.render",
    "plan": "plan.plan",
    "apply": "apply.apply",
    "drift": "drift.drift",
    "watch": "watch.watch",
    "history": "history.history",
    "rollback": "history.rollback",
    "adopt": "adopt.adopt",
    "export-manifest": "export_manifest.export_manifest",
    "get": "show.get",
    "show": "show.show",
    "destroy": "apply.destroy",
    "import": "import_.import_",
    "export": "export.export",
    "fuse": "fuse.fuse",
    "reactor": "reactor.reactor",
    "serve": "serve.serve",
    "keys": "keys.keys",
    "training": "training.training",
    "inference": "inference.inference",
    "cache": "cache.cache",
    "activations": "activations.activations",
    "attention": "attention.attention",
    "diff": "diff.diff",
    "tensors": "tensors.tensors",
    "embeddings": "embeddings.embeddings",
    "lineage": "lineage.lineage",
    "plugins": "plugins.plugins",
    "plugin": "plugin.plugin",
    "migrate": "migrate.migrate",
    "db": "db.db",
    "doctor": "doctor.doctor",
}
"""Each command by its name: its module under `arc_halo.cli`, and its name there."""


class _Commands(MutableMapping[str, click.Command]):
    """The commands by name, each imported when it is asked for: the program starts at once."""

    def __init__(self) -> None:
        self._there: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._there:
            module, _, attribute = COMMANDS[name].rpartition(".")
            command = getattr(importlib.import_module(f"arc_halo.cli.{module}"), attribute)
            add_shared_options(command)
            self._there[name] = command
        return self._there[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._there[name] = command

    def __delitem__(self, name: str) -> None:
        del self._there[name]

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _InOrder(click.Group):
    """Lists its commands as a newcomer meets them, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    "arc-halo",
    cls=_InOrder,
    commands=_Commands(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="arc-halo")
@click.pass_context
def arc_halo(context: click.Context) -> None:
    """Declarative model fusion on PostgreSQL.

    A project directory of YAML declares models, fusion strategies and reactors; `apply` makes a
    database match it.

    \b
    Examples:
      arc-halo init demo && cd demo      begin a project
      arc-halo plan                      what apply would do
      arc-halo apply                     do it
      arc-halo get models                what is there now

    \b
    Exit codes: 0 done, 1 error, 2 changes pending (plan --detailed-exitcode), 3 stale plan or
    locked, 4 invalid input, 5 refused, 64 wrong usage, 130 interrupted,
    143 ended by SIGTERM.
    """
    context.ensure_object(Invocation)


arc_halo.params.extend(shared_options())


def main(arguments: list[str] | None = None) -> None:
    """The console script: runs a command and exits with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    # What it has to say of lines cut by Ctrl-C, our own errors say better.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    try:
        code = run(arguments)
    except SystemExit as exc:
        if exc.code == TERMINATED:
            _leave(TERMINATED)
        raise
    if code in (INTERRUPTED, TERMINATED):
        _leave(code)
    sys.exit(code)


def _interrupted(invocation: Invocation) -> int:
    invocation.console.note("interrupted: run the command again to go on", "warn")
    return INTERRUPTED


def _terminated(invocation: Invocation) -> int:
    invocation.console.note("ended by SIGTERM: run the command again to go on", "warn")
    return TERMINATED


def _leave(code: int) -> NoReturn:
    """Exit with `code`, whatever Python thinks of the signal: everything is closed by now.

    Where an interrupt came while a C module was imported, Python remembers it as unhandled, and
    would end itself by the signal. Where threads of a pool were ending, it would complain of them.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _terminate(number: int, frame: object) -> None:
    """End as on Ctrl-C, so that threads stop, and the embedded server with its last user."""
    raise SystemExit(TERMINATED)


def run(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code. What is no `ArcHaloError` keeps its traceback."""
    invocation = Invocation()
    try:
        code = arc_halo.main(args=arguments, standalone_mode=False, obj=invocation)
        sys.stdout.flush()
    except ArcHaloError as exc:
        invocation.console.error(exc)
        return exc.exit_code
    except click.UsageError as exc:
        exc.show()
        return 64
    except click.ClickException as exc:
        exc.show()
        return 1
    except (KeyboardInterrupt, click.Abort):
        return _interrupted(invocation)
    except SystemExit as exc:
        if exc.code != TERMINATED:
            raise
        return _terminated(invocation)
    except RuntimeError as exc:
        # What an interrupt becomes in the middle of a class: of a module that is being imported.
        cause = exc.__cause__
        if isinstance(cause, SystemExit) and cause.code == TERMINATED:
            return _terminated(invocation)
        if not isinstance(cause, KeyboardInterrupt):
            raise
        return _interrupted(invocation)
    except UnicodeEncodeError:
        given = sys.argv[1:] if arguments is None else arguments
        odd = next((each for each in given if not is_storable(each)), None)
        if odd is None:
            raise
        error = InvalidInputError(f"{odd!r} is no text in UTF-8", code="AH004")
        invocation.console.error(error)
        return error.exit_code
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            # Whoever read our output has enough; Python must not complain about it at exit.
            sys.stderr.close()
            return 0
        what = exc.filename or "the output"
        invocation.console.error(ArcHaloError(f"{what}: {exc.strerror or exc}", code="AH015"))
        return 1
    return code if isinstance(code, int) else 0
