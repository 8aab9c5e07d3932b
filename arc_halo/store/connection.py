"""Connections to PostgreSQL: safe defaults, patience with a sleeping server, errors to act on.

What a caller may rely on, whatever the address says nothing about:

- A remote server gets TLS with its certificate and name verified (`sslmode=verify-full`). Unix
  sockets and loopback hosts get libpq's default: nobody is on that line. `sslmode` in the
  address or in PGSSLMODE wins.
- Nothing is bound to a session (no server-side prepared statements, no SET, no `options`), so
  every connection also works behind a pooler in transaction mode.
- No error text holds a password.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import random
import re
import selectors
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from arc_halo.config import redact
from arc_halo.errors import ConnectionFailedError
from arc_halo.store.failures import failure_for, one_line
from arc_halo.store.failures import translate as translate
from arc_halo.store.locks import try_xact_lock as try_xact_lock

CONNECT_SECONDS = 30.0

# What psycopg has to warn of, our errors say. Who configures logging gets its warnings still.
logging.getLogger("psycopg").addHandler(logging.NullHandler())

Connection = psycopg.Connection[TupleRow]
Waiting = Callable[[str], None]

_jitter = random.Random()
"""Not the program's generator: a training that is resumed has to draw what it would have drawn."""


def connect(
    url: str,
    *,
    direct: bool = False,
    application_name: str = "arc-halo",
    timeout_seconds: float = CONNECT_SECONDS,
    waiting: Waiting | None = None,
) -> Connection:
    """An open connection in autocommit mode.

    A server that sleeps or starts is asked again, ever less often, for `timeout_seconds` in all;
    `waiting` is told why, once. `direct` goes round a Neon pooler, for what needs a session
    (migrations). Raises `ConnectionFailedError`.
    """
    settings = parameters(url, direct=direct, application_name=application_name)
    deadline = time.monotonic() + timeout_seconds
    attempt = 0
    while True:
        connection, reason = _attempt(settings)
        if connection is not None:
            return connection
        failure, pause = failure_for(reason), _pause_seconds(attempt)
        if not failure.retry or time.monotonic() + pause > deadline:
            # Outside of every `except`: psycopg's error, which holds the password, must not be
            # carried along as the context of this one.
            raise ConnectionFailedError(
                f"cannot connect to {_where(settings)}: {reason}", hint=failure.hint
            )
        if waiting is not None and attempt == 0:
            waiting(f"waiting for {_where(settings)}: {reason}")
        time.sleep(pause)
        attempt += 1


class Pool(ConnectionPool[Connection]):
    """A pool whose connections raise our errors, not the driver's.

    One that rested while the server went away is replaced, and not handed out.
    """

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Connection]:
        with translate(), super().connection(timeout) as conn:
            yield conn

    settings: Mapping[str, str]
    """What it connects with, to say why it could not."""

    def getconn(self, timeout: float | None = None) -> Connection:
        try:
            return super().getconn(timeout)
        except PoolTimeout as exc:
            waited = str(exc)
        connection, reason = _attempt({**self.settings, "connect_timeout": "2"})
        if connection is None:
            raise ConnectionFailedError(
                f"cannot connect to {_where(self.settings)}: {reason}",
                hint=failure_for(reason).hint,
            )
        connection.close()
        raise ConnectionFailedError(f"all connections are at work: {waited}")

    @classmethod
    def _jitter(cls, value: float, min_pc: float, max_pc: float) -> float:
        # psycopg's own would draw from the program's generator, at moments that nobody knows.
        return value * (1 + _jitter.uniform(min_pc, max_pc))


def pool(url: str, size: int, *, direct: bool = False, application_name: str = "arc-halo") -> Pool:
    """A pool of at most `size` connections like those of `connect`, for a `with` to open."""
    settings = parameters(url, direct=direct, application_name=application_name)
    opened = Pool(
        make_conninfo("", **settings),
        kwargs=dict(_SESSION),
        check=_check_resting,
        min_size=min(1, size),
        max_size=size,
        timeout=CONNECT_SECONDS,
        reconnect_timeout=CONNECT_SECONDS,
        name=application_name,
        open=False,
    )
    opened.settings = settings
    return opened


def parameters(
    url: str, *, direct: bool = False, application_name: str = "arc-halo"
) -> dict[str, str]:
    """What libpq is given for `url` (a URL or a conninfo string): its own words and our defaults.

    Raises `ConnectionFailedError` for an address that cannot be read.
    """
    given = parse(url)
    if direct and "host" in given:
        given["host"] = ",".join(_POOLER.sub(r"\1", host) for host in given["host"].split(","))
    defaults = _DEFAULTS | {"application_name": application_name}
    if "PGCONNECT_TIMEOUT" in os.environ:
        del defaults["connect_timeout"]
    return {**defaults, **given, **_tls(given)}


def parse(url: str) -> dict[str, str]:
    """The words of a URL or a conninfo string, by libpq's names for them, the password too."""
    authority = re.match(r"\s*postgres(?:ql)?://([^/?#]*)", url, re.IGNORECASE)
    path = re.split(r"[?#]", url[authority.end() :])[0] if authority else ""
    if authority and ":" in authority[1] and "@" in path:
        raise ConnectionFailedError(
            "the database address holds a '/' before its host",
            hint="write a '/' of the user or the password as %2F",
        )
    if authority and authority[1].count("@") > 1:
        raise ConnectionFailedError(
            "the database address holds more than one '@' before its host",
            hint="write an '@' of the user or the password as %40",
        )
    problem = ""
    try:
        return {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.Error as exc:
        # What libpq quotes may be a piece of the password.
        problem = re.sub(r'"[^"]*"', '"…"', one_line(str(exc)))
    raise ConnectionFailedError(
        f"the database address cannot be read: {problem}",
        hint="write it as postgresql://USER:PASSWORD@HOST/DATABASE, with %XX for special "
        "characters in the password",
    )


# psycopg would otherwise prepare a statement after five uses, and a pooler in transaction mode
# would run it on a server session that never heard of it.
_SESSION: Mapping[str, object] = {"autocommit": True, "prepare_threshold": None}

_DEFAULTS = {
    "connect_timeout": "10",
    "client_encoding": "UTF8",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    # Keepalives do not probe while something sent is unanswered: this is their minute for that.
    "tcp_user_timeout": "60000",
}

_POOLER = re.compile(r"^(ep-[a-z0-9-]+)-pooler(?=\.)", re.IGNORECASE)

_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def _check_resting(connection: Connection) -> None:
    """Raise for a resting connection on which the server has said something, or hung up.

    No question is asked: with nothing listened for, all that a server says unasked is goodbye.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        if selector.select(timeout=0):
            connection.close()  # or the pool would keep it
            raise psycopg.OperationalError("the server ended the connection")


def _attempt(settings: Mapping[str, str]) -> tuple[Connection | None, str]:
    try:
        connection = psycopg.connect(
            make_conninfo("", **settings), autocommit=True, prepare_threshold=None
        )
    except psycopg.Error as exc:
        return None, _scrub(str(exc), settings)
    return connection, ""


def _pause_seconds(attempt: int) -> float:
    # Jitter, so that the jobs that lost one server together do not come back together.
    return min(0.25 * 2.0**attempt, 5.0) * _jitter.uniform(0.5, 1.0)


def _tls(given: Mapping[str, str]) -> dict[str, str]:
    mode = given.get("sslmode") or os.environ.get("PGSSLMODE")
    chosen: dict[str, str] = {}
    # To libpq too, asking for the system's authorities is asking for a full check.
    if mode is None and (given.get("sslrootcert") == "system" or not is_local(given)):
        mode = chosen["sslmode"] = "verify-full"
    if (root := _root_certificates(given, mode)) is not None:
        chosen["sslrootcert"] = root
    return chosen


def is_local(given: Mapping[str, str]) -> bool:
    """Whether every host is a unix socket or a loopback address. A `service` counts as remote."""
    if "service" in given or "PGSERVICE" in os.environ:
        return False
    hosts = (
        given.get("hostaddr")
        or given.get("host")
        or os.environ.get("PGHOSTADDR")
        or os.environ.get("PGHOST", "")
    )
    return all(_is_loopback(host.strip()) for host in hosts.split(","))


def _is_loopback(host: str) -> bool:
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _root_certificates(given: Mapping[str, str], mode: str | None) -> str | None:
    """The `sslrootcert` to use, where the one the address names, or libpq's own, would not do."""
    asked = given.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")
    if asked not in (None, "system") or (
        asked is None and mode not in ("verify-ca", "verify-full")
    ):
        return None
    home = os.environ.get("HOME")
    if asked is None and home and (Path(home) / ".postgresql" / "root.crt").is_file():
        return None
    # The OpenSSL inside psycopg's wheels looks for the system's authorities in a directory that
    # no system has, unless these variables tell it better.
    if "SSL_CERT_FILE" in os.environ or "SSL_CERT_DIR" in os.environ:
        return "system"
    return next((path for path in _CERTIFICATES if Path(path).is_file()), "system")


def _where(settings: Mapping[str, str]) -> str:
    host = (
        settings.get("host") or settings.get("hostaddr") or os.environ.get("PGHOST") or "localhost"
    )
    port = f":{settings['port']}" if "port" in settings else ""
    return redact(f"{host}{port}/{settings.get('dbname', '')}".rstrip("/"))


def _scrub(text: str, settings: Mapping[str, str]) -> str:
    text = one_line(redact(text))
    for name in ("password", "sslpassword"):
        if secret := settings.get(name):
            text = text.replace(secret, "***")
    return text
