"""Which program writes a session, and whether it is there still."""

from __future__ import annotations

import os
import socket

from arc_halo.store.training_sessions import Program, SessionRecord

SILENT_SECONDS = 60.0
"""After so long without a sign of life a session counts as crashed."""


def is_alive(record: SessionRecord, program: Program) -> bool:
    """Whether a program is at work on a session, as far as `program` can tell.

    It gave a sign of life within a minute; where it is one of this host, its process is there.
    """
    if record.status != "running" or record.silent_seconds >= SILENT_SECONDS:
        return False
    is_here = record.host == program.host and record.pid is not None
    return not is_here or _is_process(record.pid or 0)


def this_program(git_commit: str | None = None, git_dirty: bool | None = None) -> Program:
    return Program(
        host=socket.gethostname(), pid=os.getpid(), git_commit=git_commit, git_dirty=git_dirty
    )


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
