"""The operating system's account that the server runs as.

PostgreSQL refuses to run as root. For root it runs as whoever owns the existing data directory, or
as the system account `pgserver`, added when it is first needed.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_halo.errors import EmbeddedServerError

SYSTEM_ACCOUNT = "pgserver"
USE_ANOTHER = "or set ARC_HALO_DATABASE_URL to the address of another PostgreSQL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The operating system's account that the server runs as."""

    uid: int
    gid: int
    name: str

    @property
    def is_other(self) -> bool:
        return self.uid != os.geteuid()

    def options(self) -> dict[str, Any]:
        """What `subprocess` needs to run a program as this account, away from our terminal."""
        options: dict[str, Any] = {"start_new_session": True, "umask": 0o077, "env": _environment()}
        if self.is_other:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return options


def account_for(data: Path) -> Account:
    """The account for the cluster in `data`, or for the one to be made there.

    Raises `EmbeddedServerError` where the cluster is somebody else's.
    """
    me = os.geteuid()
    owner = data.stat().st_uid if data.exists() else me
    if me == 0:
        return _account(owner) if owner != 0 else _system_account()
    if owner != me:
        raise EmbeddedServerError(
            f"{data} belongs to another user ({name_of(owner)})",
            hint=f"run arc-halo as that user, {USE_ANOTHER}",
        )
    return _account(me)


def name_of(uid: int) -> str:
    """The user's name, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _account(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError as exc:
        raise EmbeddedServerError(
            f"the user with the number {uid} has no name, and PostgreSQL needs one",
            hint=f"add the user to /etc/passwd, {USE_ANOTHER}",
        ) from exc
    return Account(uid=uid, gid=entry.pw_gid, name=entry.pw_name)


def _system_account() -> Account:
    try:
        return _account(pwd.getpwnam(SYSTEM_ACCOUNT).pw_uid)
    except KeyError:
        problem = _add_system_account()
    try:
        return _account(pwd.getpwnam(SYSTEM_ACCOUNT).pw_uid)
    except KeyError as exc:
        raise EmbeddedServerError(
            f"PostgreSQL does not run as root, and the account {SYSTEM_ACCOUNT!r} for it "
            f"cannot be added: {problem}",
            hint=f"add it (useradd --system {SYSTEM_ACCOUNT}), run arc-halo as an ordinary user, "
            + USE_ANOTHER,
        ) from exc


def _add_system_account() -> str:
    """Try to add the account; what went wrong, if anything did."""
    command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", SYSTEM_ACCOUNT]
    try:
        added = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as exc:
        return str(exc)
    return added.stderr.strip()


def _environment() -> dict[str, str]:
    # Little on purpose: the variables of our environment may hold secrets, and PG… ones mislead.
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C"}
