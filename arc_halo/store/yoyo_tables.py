"""yoyo's own tables, kept on a connection and in a transaction of ours.

yoyo's backend would open connections, probe the database and take a lock row; this one does none
of it, so that a mark commits together with what it marks, and `yoyo list` agrees with us.
"""

from __future__ import annotations

import socket
import uuid
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from yoyo import internalmigrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri
from yoyo.migrations import Migration, default_migration_table

from arc_halo.store.connection import Connection


class YoyoTables(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """Marks and unmarks migrations in the transaction that `conn` is in."""

    def __init__(self, conn: Connection) -> None:
        self._given = conn
        super().__init__(parse_uri("postgresql+psycopg:///"), default_migration_table)
        self._in_transaction = True
        self.ensure_internal_schema_updated()

    def mark(self, id: str) -> None:
        migration = Migration(id, f"{id}.sql", source_dir="")
        self.log_migration(migration, "apply")
        self.mark_one(migration, log=False)

    def unmark(self, id: str) -> None:
        migration = Migration(id, f"{id}.sql", source_dir="")
        self.log_migration(migration, "rollback")
        self.unmark_one(migration, log=False)

    def note(self, id: str | None, operation: str, *, by: str, comment: str) -> None:
        """Write what somebody did, and why, into yoyo's log."""
        migration = None if id is None else Migration(id, f"{id}.sql", source_dir="")
        facts = self.get_log_data(migration, operation)
        self._given.execute(NOTE, facts | {"username": by[:255], "comment": comment})

    def connect(self, dburi: object) -> Connection:
        return self._given

    def cursor(self) -> psycopg.Cursor[tuple[Any, ...]]:
        return self._given.cursor(row_factory=tuple_row)

    def ensure_internal_schema_updated(self) -> None:
        if internalmigrations.needs_upgrading(self):
            internalmigrations.upgrade(self)

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        # yoyo asks for the login name, which a container may not have, and the name service.
        return {
            "id": str(uuid.uuid1()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": self._given.info.user,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }


NOTE = """
INSERT INTO _yoyo_log
    (id, migration_hash, migration_id, operation, username, hostname, comment, created_at_utc)
VALUES (%(id)s, %(migration_hash)s, %(migration_id)s, %(operation)s, %(username)s, %(hostname)s,
        %(comment)s, %(created_at_utc)s)
"""
