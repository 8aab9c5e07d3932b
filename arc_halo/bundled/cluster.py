"""A database cluster: how it is made, configured and launched.

As another account than ours (that is, by root) the server is started inside its data directory
and told that it is `/proc/self/cwd`. It then never walks the path, so the project may well lie
where only root can enter, and no permission changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from arc_halo.bundled.accounts import SYSTEM_ACCOUNT, USE_ANOTHER, Account, name_of
from arc_halo.bundled.programs import program
from arc_halo.errors import EmbeddedServerError

ROLE = "arc_halo"
DATABASE = "arc_halo"
PORT = 5432


def create_cluster(data: Path, account: Account, *, hold: int) -> None:
    """Make the data directory, with the database in it, whole or not at all.

    It is built beside `data` and renamed. `hold` is an open lock that the programs inherit:
    should we be killed, nobody begins anew before they have ended too.
    """
    building = data.with_name(f"{data.name}.new")
    if building.exists():
        shutil.rmtree(building)
    building.mkdir(mode=0o700)
    give(building, account)
    try:
        _initdb(building, account, hold)
        _create_database(building, account, hold)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    building.rename(data)
    _sync_directory(data.parent)


def write_configuration(data: Path, account: Account) -> None:
    """Write our settings and who may connect; what a user set with ALTER SYSTEM stays above."""
    users = dict.fromkeys((account.name, name_of(os.geteuid()), "root"))
    lines = [f'{ROLE} "{user}" {ROLE}' for user in users if user != SYSTEM_ACCOUNT]
    _write(data / "arc_halo.conf", _SETTINGS, account)
    _write(data / "pg_hba.conf", f"{_HEADER}local all all peer map={ROLE}\n", account)
    _write(data / "pg_ident.conf", _HEADER + "\n".join(lines) + "\n", account)


def launch(data: Path, account: Account, *, log: int, running: int) -> None:
    """Start the server as nobody's child, in a session of its own, with `running` inherited."""
    command: list[str | Path] = [program("postgres", account), "-D", _location(data, account)]
    # The shell ends at once: the server is then a child of init, so it neither gets our
    # terminal's signals nor lingers as our zombie.
    subprocess.run(
        ["/bin/sh", "-c", '"$@" &', "sh", *command],
        check=True,
        cwd=data,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(running,),
        **account.options(),
    )


def give(path: Path, account: Account) -> None:
    """Let `account` own `path`, and all below it."""
    if not account.is_other:
        return
    os.chown(path, account.uid, account.gid, follow_symlinks=False)
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            os.chown(Path(directory) / name, account.uid, account.gid, follow_symlinks=False)


def hint_for(said: str) -> str:
    """What to do about what PostgreSQL's programs said."""
    for words, hint in _HINTS:
        if words in said:
            return hint
    return f"the log above says why; set it right, {USE_ANOTHER}"


_HEADER = "# Written by arc-halo at every start: changes are lost. ALTER SYSTEM's settings stay.\n"

# For bulk writes: large and rare checkpoints, and no write-ahead log for tables filled in the
# transaction that made them. fsync, full_page_writes and synchronous_commit stay on.
_SETTINGS = f"""{_HEADER}
listen_addresses = ''
port = {PORT}
unix_socket_directories = '.'
unix_socket_permissions = 0700
cluster_name = 'arc-halo'

shared_buffers = 256MB
wal_buffers = 16MB
wal_level = minimal
max_wal_senders = 0
max_wal_size = 2GB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9
maintenance_work_mem = 256MB
work_mem = 16MB
max_locks_per_transaction = 256
jit = off

logging_collector = off
log_checkpoints = off
log_line_prefix = '%m [%p] '
log_timezone = 'UTC'
timezone = 'UTC'
lc_messages = 'C'
"""

_INITDB = (
    f"--username={ROLE}",
    "--encoding=UTF8",
    # The built-in provider sorts and folds alike on every system; this build has no ICU.
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--data-checksums",
    "--auth=peer",
    "--no-instructions",
)

_HINTS = (
    ("No space left on device", "the disk is full: free some space, then try again"),
    ("Disk quota exceeded", "the disk quota is used up: free some space, then try again"),
    ("Read-only file system", f"the directory takes no writes: use another, {USE_ANOTHER}"),
    ("incompatible with server", "the data is of another PostgreSQL version: move it away"),
    ("Cannot allocate memory", "the server needs about 300 MiB of memory: free some"),
    (
        "is another postmaster",
        "another PostgreSQL server, not started by arc-halo, uses the data directory: stop it",
    ),
    ("Permission denied", "check the permissions of the data directory and of all it holds"),
)


def _initdb(data: Path, account: Account, hold: int) -> None:
    initdb = program("initdb", account)
    _run([initdb, *_INITDB, "-D", _location(data, account)], data, account, hold)
    configuration = data / "postgresql.conf"
    _write(configuration, configuration.read_text() + "\ninclude 'arc_halo.conf'\n", account)
    write_configuration(data, account)


def _create_database(data: Path, account: Account, hold: int) -> None:
    # Without a server, so that the directory is never seen without its database.
    postgres = program("postgres", account)
    options = ("--single", "-c", "exit_on_error=true", "-D", _location(data, account))
    sql = f"CREATE DATABASE {DATABASE}\n"
    _run([postgres, *options, "postgres"], data, account, hold, text=sql)


def _run(
    command: list[str | Path], data: Path, account: Account, hold: int, text: str = ""
) -> None:
    finished = subprocess.run(
        command,
        cwd=data,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        pass_fds=(hold,),
        **account.options(),
    )
    if finished.returncode != 0:
        said = [line for line in finished.stdout.splitlines() if line.strip()]
        raise EmbeddedServerError(
            f"{data.parent}: {Path(command[0]).name} could not make the database "
            f"(exit status {finished.returncode}):\n" + "\n".join(said[-8:]),
            hint=hint_for(finished.stdout),
        )


def _location(data: Path, account: Account) -> str:
    return "/proc/self/cwd" if account.is_other else str(data)


def _write(path: Path, text: str, account: Account) -> None:
    """Replace `path`, never writing through a link that the account may have put there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(handle)
        if account.is_other:
            os.fchown(handle, account.uid, account.gid)
    Path(name).replace(path)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
