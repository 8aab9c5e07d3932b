"""SQL of gradient checkpoints: which layers a session computes again, and what that saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection

DELETE = """
DELETE FROM gradient_checkpoints WHERE session_id = %(session_id)s
"""

INSERT = """
INSERT INTO gradient_checkpoints (session_id, layer_index, module_name, is_checkpointed,
                                  activation_bytes, saved_bytes)
SELECT %(session_id)s, item.layer_index, item.module_name, item.is_checkpointed,
       item.activation_bytes, item.saved_bytes
FROM jsonb_to_recordset(%(items)s) AS item (
    layer_index int, module_name text, is_checkpointed boolean, activation_bytes bigint,
    saved_bytes bigint)
"""

OF_SESSION = """
SELECT layer_index, module_name, is_checkpointed, activation_bytes, saved_bytes
FROM gradient_checkpoints WHERE session_id = %(session_id)s ORDER BY layer_index
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCheckpoint:
    """A layer of a session; bytes are estimates, None where nothing is known of the model."""

    layer_index: int
    module_name: str
    is_checkpointed: bool
    activation_bytes: int | None
    saved_bytes: int | None


def replace(conn: Connection, session_id: UUID, rows: Sequence[GradientCheckpoint]) -> None:
    """Make these the layers of the session, in place of what was recorded before."""
    conn.execute(DELETE, {"session_id": session_id})
    items = Jsonb([asdict(row) for row in rows])
    conn.execute(INSERT, {"session_id": session_id, "items": items})


def of_session(conn: Connection, session_id: UUID) -> list[GradientCheckpoint]:
    """The layers of a session, the first one first; none where nothing was recorded."""
    with conn.cursor(row_factory=class_row(GradientCheckpoint)) as cursor:
        return cursor.execute(OF_SESSION, {"session_id": session_id}).fetchall()
