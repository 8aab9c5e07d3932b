"""SQL of gradients: what a session recorded last of each weight of its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from arc_halo.store.rows import Connection

# A lease that is somebody else's by now changes nothing.
SET_NORMS = """
UPDATE model_weights AS part
SET requires_grad = item.requires_grad,
    gradient_norm = CASE WHEN item.requires_grad THEN coalesce(item.norm, part.gradient_norm) END,
    gradient_tensor_id = CASE WHEN item.requires_grad THEN part.gradient_tensor_id END
FROM training_sessions AS session,
     unnest(%(names)s::text[], %(flags)s::boolean[], %(norms)s::float8[])
         AS item (name, requires_grad, norm)
WHERE session.id = %(session_id)s AND session.lease = %(lease)s
  AND part.model_id = session.model_id AND part.tensor_name = item.name
"""

SET_TENSORS = """
UPDATE model_weights AS part SET gradient_tensor_id = member.tensor_id
FROM training_sessions AS session, weight_set_tensors AS member
WHERE session.id = %(session_id)s AND session.lease = %(lease)s
  AND member.weight_set_id = (SELECT id FROM weight_sets WHERE root = %(root)s)
  AND part.model_id = session.model_id AND part.tensor_name = member.tensor_name
"""

WEIGHT_NAMES = """
SELECT part.tensor_name
FROM training_sessions AS session JOIN model_weights AS part ON part.model_id = session.model_id
WHERE session.id = %(session_id)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientRow:
    """What is recorded of a weight; `norm` is None where it had no gradient this time."""

    name: str
    requires_grad: bool
    norm: float | None


def set_norms(conn: Connection, session_id: UUID, lease: UUID, rows: Sequence[GradientRow]) -> int:
    """Record these of the weights of the session's model; how many weights there were."""
    fields = {
        "session_id": session_id,
        "lease": lease,
        "names": [row.name for row in rows],
        "flags": [row.requires_grad for row in rows],
        "norms": [row.norm for row in rows],
    }
    return conn.execute(SET_NORMS, fields).rowcount


def set_tensors(conn: Connection, session_id: UUID, lease: UUID, root: bytes) -> int:
    """Make the tensors of a set the gradients of the weights of their names; how many."""
    fields = {"session_id": session_id, "lease": lease, "root": root}
    return conn.execute(SET_TENSORS, fields).rowcount


def weight_names(conn: Connection, session_id: UUID) -> set[str]:
    """The names of the weights that the session's model has."""
    rows = conn.execute(WEIGHT_NAMES, {"session_id": session_id}).fetchall()
    return {str(name) for (name,) in rows}
