"""What a reactor remembers between runs: rows of `cognitive_state`."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.store import operations
from arc_halo.store.rows import Connection

KINDS = ("context", "memory", "attention_focus", "goal")


class StoredState:
    """A reactor's state in the database; each call is a transaction of its own."""

    def __init__(
        self, connection: Callable[[], AbstractContextManager[Connection]], reactor: str
    ) -> None:
        self._connection = connection
        self._reactor = reactor

    def get(self, kind: str, key: str) -> Any:
        """A value; None where there is none, or none any more."""
        with self._connection() as conn:
            return operations.state_get(conn, self._reactor, _known(kind), key)

    def list(self, kind: str) -> builtins.list[tuple[str, Any]]:
        """Keys and values of a kind, those of the highest priority first."""
        with self._connection() as conn:
            return operations.state_list(conn, self._reactor, _known(kind))

    def set(
        self, kind: str, key: str, value: Any, *, priority: int = 0, seconds: float | None = None
    ) -> None:
        """Keep a value, for so many seconds if that is said."""
        ttl = None if seconds is None else timedelta(seconds=seconds)
        with self._connection() as conn:
            operations.state_set(
                conn, self._reactor, _known(kind), key, value, priority=priority, ttl=ttl
            )

    def forget(self, kind: str, key: str) -> None:
        with self._connection() as conn:
            operations.state_forget(conn, self._reactor, _known(kind), key)


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise InvalidInputError(
            f"{kind!r} is no kind of state", hint=f"kinds are {', '.join(KINDS)}", code="AH006"
        )
    return kind
