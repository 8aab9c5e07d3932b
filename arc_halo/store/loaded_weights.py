"""SQL that knows registered models by the tensors of a module that has their weights."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from arc_halo.store.rows import Connection

# Engines add buffers, and names for tensors that are tied: so the root is another one.
RECOGNISE = """
INSERT INTO loaded_weights (weights_root, weight_set_id)
SELECT %(weights_root)s::bytea, held.weight_set_id
FROM unnest(%(names)s::text[], %(digests)s::bytea[], %(places)s::int4[])
     AS given (name, digest, place)
JOIN tensor_metadata AS tensor ON tensor.digest = given.digest
JOIN weight_set_tensors AS held ON held.tensor_id = tensor.id AND held.tensor_name = given.name
JOIN weight_sets AS stored ON stored.id = held.weight_set_id AND stored.root IS NOT NULL
GROUP BY held.weight_set_id, stored.tensor_count
HAVING count(*) = stored.tensor_count
   AND count(DISTINCT given.place) = (
       SELECT count(DISTINCT place) FROM unnest(%(places)s::int4[]) AS all_of_them (place))
ON CONFLICT DO NOTHING
"""

ROOTS = """
SELECT DISTINCT weights_root FROM v_models_by_weights
WHERE model_id = %(model_id)s ORDER BY weights_root
"""


def recognise(
    conn: Connection,
    weights_root: bytes,
    tensors: Mapping[str, bytes],
    parameters: Mapping[str, int],
) -> None:
    """Note whose weights a module has, by the digests of its tensors. Some of these are parameters,
    each with a number that tied ones have in common: all of them must be in the set."""
    conn.execute(
        RECOGNISE,
        {
            "weights_root": weights_root,
            "names": list(tensors),
            "digests": list(tensors.values()),
            "places": [parameters.get(name) for name in tensors],
        },
    )


def roots(conn: Connection, model_id: UUID) -> list[bytes]:
    """What the weights of a registered model are known by: as stored, and as engines load them."""
    found = conn.execute(ROOTS, {"model_id": model_id}).fetchall()
    return [bytes(root) for (root,) in found if isinstance(root, bytes)]
