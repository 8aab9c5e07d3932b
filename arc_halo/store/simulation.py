"""SQL of a collection that is only told: what would go, as one question."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from psycopg.rows import class_row

from arc_halo.store.rows import Connection

# Each step sees what the steps before it would leave.
SIMULATION = """
WITH gone_builds AS MATERIALIZED (
    SELECT id, weight_set_id FROM weight_builds
    WHERE status = 'building'
          AND heartbeat_at < now() - greatest(%(grace)s::interval, interval '1 hour')
       OR status = 'failed' AND heartbeat_at < now() - %(grace)s::interval
), cutoff AS MATERIALIZED (
    SELECT least(now() - %(grace)s::interval, min(started_at)) AS at
    FROM weight_builds
    WHERE status = 'building'
      AND heartbeat_at >= now() - greatest(%(grace)s::interval, interval '1 hour')
), ranked AS (
    SELECT model_id, weight_set_id,
           row_number() OVER (PARTITION BY model_id
                              ORDER BY max(assigned_at) DESC, max(id) DESC) AS place
    FROM model_weight_history WHERE weight_set_id IS NOT NULL
    GROUP BY model_id, weight_set_id
), gone_history AS MATERIALIZED (
    SELECT entry.id
    FROM ranked JOIN model_weight_history AS entry USING (model_id, weight_set_id)
    WHERE ranked.place > %(retain)s
      AND NOT EXISTS (SELECT FROM models AS model
                      WHERE model.weight_set_id = entry.weight_set_id)
), kept_sets AS (
    SELECT weight_set_id AS id FROM models
    UNION ALL SELECT weight_set_id FROM model_weight_history AS r
              WHERE NOT EXISTS (SELECT FROM gone_history WHERE gone_history.id = r.id)
    UNION ALL SELECT weight_set_id FROM model_checkpoints
    UNION ALL SELECT state_set_id FROM model_checkpoints
    UNION ALL SELECT fitted_set_id FROM cognitive_fusion_reactors
    UNION ALL SELECT output_set_id FROM fusion_operations
    UNION ALL SELECT weight_set_id FROM weight_builds, cutoff WHERE heartbeat_at >= cutoff.at
), gone_sets AS MATERIALIZED (
    SELECT sets.id FROM weight_sets AS sets, cutoff
    WHERE NOT EXISTS (SELECT FROM kept_sets AS r WHERE r.id = sets.id)
      AND (sets.completed_at < cutoff.at
        OR sets.root IS NULL
           AND NOT EXISTS (SELECT FROM weight_builds AS r WHERE r.weight_set_id = sets.id))
), kept_tensors AS (
    SELECT tensor_id AS id FROM weight_set_tensors AS r
    WHERE NOT EXISTS (SELECT FROM gone_sets WHERE gone_sets.id = r.weight_set_id)
      AND NOT EXISTS (SELECT FROM gone_builds WHERE gone_builds.weight_set_id = r.weight_set_id)
    UNION ALL SELECT tensor_id FROM model_weights
    UNION ALL SELECT gradient_tensor_id FROM model_weights
    UNION ALL SELECT tensor_id FROM embeddings
    UNION ALL SELECT tensor_id FROM optimizer_state
    UNION ALL SELECT tensor_id FROM activation_cache
), gone_tensors AS MATERIALIZED (
    SELECT tensor.id FROM tensor_metadata AS tensor, cutoff
    WHERE tensor.created_at < cutoff.at
      AND NOT EXISTS (SELECT FROM kept_tensors AS r WHERE r.id = tensor.id)
), kept_chunks AS (
    SELECT chunk_digest AS digest FROM tensor_data AS r
    WHERE NOT EXISTS (SELECT FROM gone_tensors WHERE gone_tensors.id = r.tensor_id)
), free_chunks AS MATERIALIZED (
    SELECT chunk.digest, chunk.base_digest, chunk.stored_bytes, chunk.store_id
    FROM chunk_bodies AS chunk, cutoff
    WHERE chunk.seen_at < cutoff.at
      AND NOT EXISTS (SELECT FROM kept_chunks AS r WHERE r.digest = chunk.digest)
), kept_bases AS (
    SELECT base_digest AS digest FROM chunk_bodies AS r
    WHERE base_digest IS NOT NULL
      AND NOT EXISTS (SELECT FROM free_chunks WHERE free_chunks.digest = r.digest)
), gone_chunks AS MATERIALIZED (
    SELECT * FROM free_chunks AS chunk
    WHERE NOT EXISTS (SELECT FROM kept_bases AS r WHERE r.digest = chunk.digest)
)
SELECT (SELECT count(*) FROM gone_builds)
         + (SELECT count(*) FROM weight_builds AS build
            WHERE EXISTS (SELECT FROM gone_sets WHERE gone_sets.id = build.weight_set_id))
         AS builds,
       (SELECT count(*) FROM gone_history) AS history_entries,
       (SELECT count(*) FROM gone_sets) AS weight_sets,
       (SELECT count(*) FROM gone_tensors) AS tensors,
       (SELECT count(*) FROM gone_chunks) AS chunks,
       (SELECT count(*) FROM fused_tensors AS r
        WHERE NOT EXISTS (
              SELECT FROM fusion_tasks AS task
              JOIN weight_builds AS build ON build.id = task.build_id
              WHERE task.tensor_key = r.tensor_key
                AND NOT EXISTS (SELECT FROM gone_builds WHERE gone_builds.id = build.id)
                AND NOT EXISTS (SELECT FROM gone_sets WHERE gone_sets.id = build.weight_set_id))
          AND NOT EXISTS (
              SELECT FROM tensor_metadata AS tensor WHERE tensor.digest = r.tensor_digest
                AND NOT EXISTS (SELECT FROM gone_tensors WHERE gone_tensors.id = tensor.id))
       ) AS fused_tensors,
       (SELECT count(*) FROM tokenizers AS r WHERE NOT EXISTS (
            SELECT FROM models AS model WHERE model.tokenizer_digest = r.digest)) AS tokenizers,
       (SELECT count(*) FROM gone_chunks WHERE store_id = %(store_id)s::int) AS bodies,
       (SELECT coalesce(sum(stored_bytes), 0)::bigint FROM gone_chunks) AS freed_bytes
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """How much of each would go. `bodies` counts those of one body store."""

    builds: int
    history_entries: int
    weight_sets: int
    tensors: int
    chunks: int
    tokenizers: int
    fused_tensors: int
    bodies: int
    freed_bytes: int


def simulate(conn: Connection, *, grace: timedelta, retain: int, store_id: int | None) -> Simulated:
    """What a collection would take now. Changes nothing."""
    with conn.cursor(row_factory=class_row(Simulated)) as cursor:
        found = cursor.execute(
            SIMULATION, {"grace": grace, "retain": retain, "store_id": store_id}
        ).fetchone()
    assert found is not None
    return found
