"""A server at work: its reactors opened, its socket bound, its last requests answered."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import uvicorn

from arc_halo.errors import (
    InvalidInputError,
    NotFoundError,
    ReactorError,
    UnknownPluginError,
    UsageError,
)
from arc_halo.project import Project
from arc_halo.reactors.running import RunningReactor
from arc_halo.serving.app import Limits, Service, application
from arc_halo.serving.keys import find_key
from arc_halo.store import reactors
from arc_halo.store.keys import ApiKey

Note = Callable[[str], None]

BACKLOG = 2048


def serve(
    project: Project,
    *,
    names: Sequence[str],
    host: str,
    port: int,
    limits: Limits,
    has_keys: bool,
    note: Note,
    ready: Callable[[str, Sequence[str]], None],
) -> None:
    """Answer requests until SIGTERM or SIGINT, and then those that have begun.

    `ready` is told the address and the reactors. Raises `UsageError` for a server without keys
    that others could reach, `InvalidInputError` for an address that cannot be had, and what
    opening a reactor raises.
    """
    if not has_keys and not is_loopback(host):
        raise UsageError(
            f"without keys others could ask, at {host}",
            hint="make keys, `arc-halo keys create NAME`, or stay at 127.0.0.1",
        )
    with listen(host, port) as listening, opened(project, names, note) as found:
        service = service_of(project, found, limits=limits, has_keys=has_keys, note=note)
        address = listening.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        ready(f"http://{shown}:{address[1]}/v1", sorted(found))
        run_until_signal(service, listening)


def service_of(
    project: Project,
    reactors: Mapping[str, RunningReactor],
    *,
    limits: Limits,
    has_keys: bool,
    note: Note,
) -> Service:
    """Reactors as a service, with the keys and the secrets of their project."""
    return Service(
        reactors=reactors,
        find_key=_key_finder(project) if has_keys else None,
        cover=project.allowance.cover,
        log=note,
        limits=limits,
    )


@contextmanager
def opened(
    project: Project, names: Sequence[str], note: Note
) -> Iterator[Mapping[str, RunningReactor]]:
    """Reactors, their members ready to answer: those named, or all that run here.

    Of all, one that does not run here is left out with a note. Raises `NotFoundError` where none
    is left.
    """
    with ExitStack() as stack:
        found: dict[str, RunningReactor] = {}
        for name in names or _every(project):
            try:
                found[name] = stack.enter_context(project.open_reactor(name))
            except (ReactorError, UnknownPluginError) as exc:
                if names:
                    raise
                note(f"left out reactor/{name}: {exc.message}")
        if not found:
            raise NotFoundError(
                "there is no reactor that runs here",
                hint="declare one that is no merge, and apply; `arc-halo reactor status`",
            )
        yield found


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound to the address. Raises `InvalidInputError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        raise InvalidInputError(
            f"cannot listen at {host}:{port}: {exc.strerror or exc}",
            hint="take another `--port`, or 0 for any that is free",
            code="AH090",
        ) from exc


def run_until_signal(service: Service, listening: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT; then stop to listen, and end what has begun.

    After a second SIGINT all that wait are told 503; what runs is written down all the same.
    Raises `KeyboardInterrupt` then.
    """
    config = uvicorn.Config(
        application(service),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    server = uvicorn.Server(config)
    # When all is answered it raises the signal again, for whoever had it before: a server that
    # was told to stop, and did, has not failed.
    before = {number: signal.signal(number, _pass) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    service.underway.wait()
    if server.force_exit:
        raise KeyboardInterrupt


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pass(number: int, frame: object) -> None:
    pass


def _every(project: Project) -> list[str]:
    """The reactors of the database, merges aside, which have nothing to run."""
    project.check_schema()
    with project.connection() as conn:
        rows = reactors.status(conn)
    return [str(row["reactor_name"]) for row in rows if row["reactor_type"] != "merge"]


def _key_finder(project: Project) -> Callable[[str], ApiKey | None]:
    def find(key: str) -> ApiKey | None:
        with project.connection() as conn:
            return find_key(conn, key)

    return find
