"""The program `arc-halo`: its commands, its exit codes, and what happens to errors."""

from __future__ import annotations

import logging
import signal
import sys

import click

from arc_halo._version import __version__
from arc_halo.cli.activations import activations
from arc_halo.cli.adopt import adopt
from arc_halo.cli.apply import apply, destroy
from arc_halo.cli.attention import attention
from arc_halo.cli.cache import cache
from arc_halo.cli.db import db
from arc_halo.cli.diff import diff
from arc_halo.cli.doctor import doctor
from arc_halo.cli.drift import drift
from arc_halo.cli.embeddings import embeddings
from arc_halo.cli.export import export
from arc_halo.cli.fuse import fuse
from arc_halo.cli.history import history, rollback
from arc_halo.cli.import_ import import_
from arc_halo.cli.inference import inference
from arc_halo.cli.init import init
from arc_halo.cli.invocation import INTERRUPTED, Invocation, add_shared_options
from arc_halo.cli.keys import keys
from arc_halo.cli.lineage import lineage
from arc_halo.cli.migrate import migrate
from arc_halo.cli.plan import plan
from arc_halo.cli.plugin import plugin
from arc_halo.cli.plugins import plugins
from arc_halo.cli.reactor import reactor
from arc_halo.cli.render import render
from arc_halo.cli.serve import serve
from arc_halo.cli.show import get, show
from arc_halo.cli.tensors import tensors
from arc_halo.cli.training import training
from arc_halo.cli.validate import schema, validate
from arc_halo.errors import ArcHaloError, InvalidInputError
from arc_halo.names import is_storable

TERMINATED = 143
COMMANDS = (
    init, validate, schema, render, plan, apply, drift, history, rollback, adopt, get,
    show, destroy,
    import_, export, fuse, reactor, serve, keys, training, inference, cache, activations,
    attention, diff, tensors, embeddings, lineage, plugins, plugin, migrate, db, doctor,
)  # fmt: skip


class _InOrder(click.Group):
    """Lists its commands as a newcomer meets them, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    "arc-halo",
    cls=_InOrder,
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
    locked, 4 invalid input, 5 refused, 64 wrong usage, 130 interrupted.
    """
    context.ensure_object(Invocation)


for _command in COMMANDS:
    arc_halo.add_command(_command)
add_shared_options(arc_halo)


def main(arguments: list[str] | None = None) -> None:
    """The console script: runs a command and exits with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    # What it has to say of lines cut by Ctrl-C, our own errors say better.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    sys.exit(run(arguments))


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
        invocation.console.note("interrupted: run the command again to go on", "warn")
        return INTERRUPTED
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
