"""One thread for BLAS while a strategy depends on it, so that bits do not depend on cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_users = 0
_limits = ExitStack()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit the process's BLAS to one thread as long as anybody is in here.

    The limit is the process's, not the thread's: whoever comes first sets it, and whoever goes
    last gives back what was there.
    """
    global _users
    with _lock:
        if not _users:
            _limits.enter_context(_controller().limit(limits=1, user_api="blas"))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _limits.pop_all().close()


@cache
def _controller() -> ThreadpoolController:
    import numpy as np
    from threadpoolctl import ThreadpoolController

    assert np  # its BLAS has to be loaded to be found
    return ThreadpoolController()
