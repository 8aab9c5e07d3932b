"""Which database a project uses, and the small rules around settings: variables, sizes, secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from arc_halo.errors import InvalidInputError
from arc_halo.names import is_name, shown

PROJECT_FILE = "arc_halo.yaml"
EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseTarget:
    """The database to use and what named it: an option, a variable, a file of the project, or
    nothing (`embedded`). The repr hides `url`."""

    kind: Literal["embedded", "url"]
    url: str | None = field(default=None, repr=False)
    origin: str


def database_target(
    *,
    flag: str | None,
    environ: Mapping[str, str],
    manifest_database: str | Mapping[str, object] | None,
    manifest_file: str = PROJECT_FILE,
) -> DatabaseTarget:
    """The first of: the flag, ARC_HALO_DATABASE_URL, the manifest, NEON_DATABASE_URL, embedded.

    `environ` should come from `load_environment`, `manifest_database` from `manifest_file`. An
    empty value counts as absent. The word `embedded` in place of a URL asks for the bundled
    server although a later source names another. Raises `InvalidInputError`; its message holds no
    password, and begins with the field where it is about one of the manifest.
    """
    if flag:
        return _target(flag, "--database-url")
    if own := environ.get("ARC_HALO_DATABASE_URL"):
        return _target(own, "ARC_HALO_DATABASE_URL")
    if manifest_database:
        return _target(_manifest_url(manifest_database, environ), manifest_file)
    if neon := environ.get("NEON_DATABASE_URL"):
        return _target(neon, "NEON_DATABASE_URL")
    return DatabaseTarget(kind="embedded", origin="embedded")


def load_environment(project_directory: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` plus what a `.env` beside `arc_halo.yaml` adds to it; nothing is exported."""
    path = project_directory / ".env" if project_directory else None
    if path is None or not path.is_file():
        return dict(environ)
    from dotenv import dotenv_values

    try:
        # Without interpolation: a password may hold a dollar sign.
        values = dotenv_values(path, interpolate=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInputError(
            f"{path}: cannot be read as a file of variables: {exc}",
            code="AH011",
            hint="write it as UTF-8 text, one NAME=value a line",
        ) from exc
    return {name: value for name, value in values.items() if value is not None} | dict(environ)


def environment_name(flag: str | None, environ: Mapping[str, str]) -> str | None:
    """The environment that `--env`, or else `ARC_HALO_ENV`, names; an empty name is none.

    `environ` should come from `load_environment`. Raises `InvalidInputError` for what is no name.
    """
    name = environ.get("ARC_HALO_ENV") if flag is None else flag
    if name and not is_name(name):
        raise InvalidInputError(
            f"{shown(name)} is not the name of an environment",
            code="AH006",
            hint="write letters in lower case, digits, '.', '_' and '-', as in overlays/NAME.yaml",
        )
    return name or None


def find_project(start: Path) -> Path | None:
    """The nearest directory, from `start` upwards, that holds `arc_halo.yaml`."""
    here = start.resolve()
    for directory in (here, *here.parents):
        if (directory / PROJECT_FILE).is_file():
            return directory
    return None


def redact(text: str) -> str:
    """`text` with `***` for every password in a URL, a conninfo string or a variable, for keys in
    addresses, and for what has the form of a service's key."""
    text = _URL_PASSWORD.sub(r"\1***@", text)
    text = _KEY_PASSWORD.sub(r"\1***", text)
    for pattern in SECRET_FORMS:
        text = pattern.sub(r"\g<before>***", text)
    return text


def parse_size(text: str) -> int:
    """Bytes in `256MiB`, `1.5 GiB`, `64kB` or `4096`. Raises `InvalidInputError`."""
    match = _SIZE.fullmatch(text.strip())
    factor = _UNITS.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        raise InvalidInputError(
            f"{text!r} is not a size",
            code="AH090",
            hint="write a number and a unit, such as 256MiB (B, kB, KiB, MB, MiB, GB, GiB, TiB)",
        )
    return round(float(match["number"]) * factor)


def parse_duration(text: str) -> int:
    """Seconds in `90s`, `15m`, `12h`, `7d` or `1w`. Raises `InvalidInputError`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidInputError(
            f"{text!r} is not a duration",
            code="AH006",
            hint="write a number and a unit, such as 7d (s, m, h, d, w)",
        )
    return int(match["number"]) * _SECONDS[match["unit"]]


# Both would rather hide too much: up to the last '@' (a password's own '@' may not be escaped),
# and up to the next blank.
_URL_PASSWORD = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s:/@?#]*:)\S*@")
_KEY_PASSWORD = re.compile(
    r"""((?:pass(?:word|wd)|pwd)['"]?\s*=\s*|['"]\w*password['"]\s*:\s*)"""
    r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)""",
    re.IGNORECASE,
)
SECRET_FORMS = (
    # A user of a web address: where there is no password, the user is often a token.
    re.compile(r"(?P<before>\bhttps?://)(?P<secret>[^\s:/@?#*]+)(?=@)", re.IGNORECASE),
    re.compile(
        r"(?P<before>[?&](?:[\w-]*[_-])?(?:(?:api)?key|token|secret|sig|signature|credential)=)"
        r"(?P<secret>[^\s&#'\"]+)",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<before>\bBearer )(?P<secret>[\w.~+/=-]{8,})", re.IGNORECASE),
    re.compile(r"(?P<before>)(?P<secret>\b(?:sk|ah)-(?=[\w-]*\d)[\w-]{8,})", re.ASCII),
    re.compile(r"(?P<before>)(?P<secret>\b(?:hf|gh[opsu]|xox[abp])[_-]\w[\w-]{15,})", re.ASCII),
)
"""What is a secret by its form, wherever it stands; `before` is what tells it."""
_URL = re.compile(r"postgres(?:ql)?://", re.IGNORECASE)
_CONNINFO = re.compile(r"\s*[a-z_]+\s*=", re.IGNORECASE)
_DURATION = re.compile(r"(?P<number>[0-9]{1,6}) *(?P<unit>[smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"(?P<number>\d{1,15}(?:\.\d{1,15})?)\s*(?P<unit>[A-Za-z]*)", re.ASCII)
_UNITS: Mapping[str, int] = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def _target(value: str, origin: str) -> DatabaseTarget:
    value = value.strip()
    if value == EMBEDDED:
        return DatabaseTarget(kind="embedded", origin=origin)
    if not (_URL.match(value) or _CONNINFO.match(value)):
        raise InvalidInputError(
            f"the value of {origin} is not a PostgreSQL address",
            code="AH090",
            hint="write it as postgresql://USER@HOST/DATABASE, or the word 'embedded'",
        )
    return DatabaseTarget(kind="url", url=value, origin=origin)


def _manifest_url(database: str | Mapping[str, object], environ: Mapping[str, str]) -> str:
    if isinstance(database, str):
        return _without_password(database)
    unknown = sorted(set(database) - {"url", "password"})
    url = database.get("url")
    if unknown or not isinstance(url, str):
        raise InvalidInputError(
            "database: it takes a 'url' and a 'password'"
            + (f", not {', '.join(map(repr, unknown))}" if unknown else ""),
            code="AH003" if unknown else "AH005",
            hint="write it as {url: postgresql://USER@HOST/DATABASE, password: {env: NAME}}",
        )
    url = _without_password(url)
    return (
        _with_password(url, _secret(database["password"], environ))
        if "password" in database
        else url
    )


def _without_password(url: str) -> str:
    if redact(url) != url:
        raise InvalidInputError(
            "database: a password may not stand in the manifest",
            code="AH090",
            hint="take it out, and add 'password: {env: NAME}' beside 'url'",
        )
    return url


def _secret(reference: object, environ: Mapping[str, str]) -> str:
    name = reference.get("env") if isinstance(reference, Mapping) and len(reference) == 1 else None
    if not isinstance(name, str):
        raise InvalidInputError(
            "database.password: it must name an environment variable",
            code="AH006",
            hint="write it as 'password: {env: NAME}'",
        )
    if not environ.get(name):
        raise InvalidInputError(
            f"database.password: the environment variable {name} is not set",
            code="AH008",
            hint=f"export {name}, or write it into the .env beside {PROJECT_FILE}",
        )
    return environ[name]


def _with_password(url: str, password: str) -> str:
    if _URL.match(url):
        return f"{url}{'&' if '?' in url else '?'}password={quote(password, safe='')}"
    escaped = password.replace("\\", "\\\\").replace("'", "\\'")
    return f"{url} password='{escaped}'"
