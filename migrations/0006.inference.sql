-- Inference: sessions and their metrics, the caches, and attention patterns.
-- depends: 0003.models

CREATE TABLE inference_sessions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    model_id uuid REFERENCES models ON DELETE SET NULL,
    model_name text NOT NULL,
    model_version text NOT NULL,
    root bytea CHECK (octet_length(root) = 32),
    tenant text NOT NULL DEFAULT '',
    status text NOT NULL DEFAULT 'active' CHECK (status IN
        ('active', 'completed', 'failed', 'crashed')),
    config jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object'),
    request_count bigint NOT NULL DEFAULT 0 CHECK (request_count >= 0),
    failed_count bigint NOT NULL DEFAULT 0 CHECK (failed_count BETWEEN 0 AND request_count),
    lost_count bigint NOT NULL DEFAULT 0 CHECK (lost_count BETWEEN 0 AND request_count),
    prompt_tokens bigint NOT NULL DEFAULT 0 CHECK (prompt_tokens >= 0),
    cached_tokens bigint NOT NULL DEFAULT 0 CHECK (cached_tokens >= 0),
    generated_tokens bigint NOT NULL DEFAULT 0 CHECK (generated_tokens >= 0),
    batch_count bigint NOT NULL DEFAULT 0 CHECK (batch_count >= 0),
    host text,
    pid integer CHECK (pid > 0),
    error text,
    started_at timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz CHECK (finished_at >= started_at),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT inference_sessions_finished_has_time
        CHECK ((status = 'active') = (finished_at IS NULL))
);
COMMENT ON TABLE inference_sessions IS
    'A model at work: one process that answers requests with one configuration.';
COMMENT ON COLUMN inference_sessions.model_name IS
    'Name and version stay when the model is deleted.';
COMMENT ON COLUMN inference_sessions.root IS
    'Root of the weights that answer; NULL where they are not in this database.';
COMMENT ON COLUMN inference_sessions.tenant IS
    'On whose behalf, as the server knows it; the empty text where there are no tenants.';
COMMENT ON COLUMN inference_sessions.config IS
    'Sampling and limits: temperature, top_k, top_p, max_tokens.';
COMMENT ON COLUMN inference_sessions.lost_count IS
    'Requests that are counted, but whose metrics could wait no longer while the database was away.';
COMMENT ON COLUMN inference_sessions.batch_count IS
    'Batches of metrics written: one that is tried again is known by its number.';
COMMENT ON COLUMN inference_sessions.heartbeat_at IS
    'The last sign of life. An active session that gave none for a minute counts as crashed.';

CREATE INDEX inference_sessions_model_id_idx ON inference_sessions (model_id, started_at);
CREATE INDEX inference_sessions_started_at_idx ON inference_sessions (started_at);

CREATE TRIGGER inference_sessions_touch BEFORE UPDATE ON inference_sessions
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_touch_updated_at();

-- NaN is above infinity.
CREATE TABLE inference_metrics (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES inference_sessions ON DELETE CASCADE,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    latency_ms double precision NOT NULL CHECK (latency_ms >= 0 AND latency_ms < 'infinity'),
    first_token_ms double precision CHECK (first_token_ms BETWEEN 0 AND latency_ms),
    tokens_per_second double precision
        CHECK (tokens_per_second >= 0 AND tokens_per_second < 'infinity'),
    prompt_tokens integer CHECK (prompt_tokens >= 0),
    cached_tokens integer CHECK (cached_tokens BETWEEN 0 AND prompt_tokens),
    generated_tokens integer CHECK (generated_tokens >= 0),
    memory_bytes bigint CHECK (memory_bytes >= 0),
    succeeded boolean NOT NULL DEFAULT true
);
COMMENT ON TABLE inference_metrics IS
    'What each request of a session took. Written in batches.';
COMMENT ON COLUMN inference_metrics.recorded_at IS
    'When the request ended.';
COMMENT ON COLUMN inference_metrics.first_token_ms IS
    'Time to the first token.';
COMMENT ON COLUMN inference_metrics.tokens_per_second IS
    'Tokens generated, by the latency unless the engine says more.';
COMMENT ON COLUMN inference_metrics.cached_tokens IS
    'Tokens of the prompt whose keys and values came from kv_cache.';
COMMENT ON COLUMN inference_metrics.memory_bytes IS
    'Peak memory of the process up to then, or of its accelerator where the engine says so.';

CREATE INDEX inference_metrics_session_id_idx ON inference_metrics (session_id, recorded_at);

CREATE VIEW v_inference_sessions AS
SELECT
    s.id AS session_id,
    s.model_name,
    s.model_version,
    s.root,
    s.tenant,
    CASE
        WHEN s.status = 'active' AND s.heartbeat_at < now() - interval '1 minute' THEN 'crashed'
        ELSE s.status
    END AS status,
    s.config,
    s.request_count,
    s.failed_count,
    s.lost_count,
    s.prompt_tokens,
    s.cached_tokens,
    s.generated_tokens,
    extract(epoch FROM coalesce(s.finished_at, s.heartbeat_at) - s.started_at)::double precision
        AS elapsed_seconds,
    s.host,
    s.pid,
    s.error,
    s.started_at,
    s.heartbeat_at,
    s.finished_at
FROM inference_sessions AS s;
COMMENT ON VIEW v_inference_sessions IS
    'One row for each inference session, as it stands.';

CREATE VIEW v_inference_latency AS
SELECT
    s.id AS session_id,
    s.model_name,
    s.model_version,
    s.tenant,
    m.*
FROM inference_sessions AS s
CROSS JOIN LATERAL (
    SELECT
        count(*) AS requests,
        count(*) FILTER (WHERE NOT x.succeeded) AS failed,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY x.latency_ms)
            FILTER (WHERE x.succeeded) AS latency_p50_ms,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY x.latency_ms)
            FILTER (WHERE x.succeeded) AS latency_p95_ms,
        percentile_cont(0.99) WITHIN GROUP (ORDER BY x.latency_ms)
            FILTER (WHERE x.succeeded) AS latency_p99_ms,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY x.first_token_ms)
            FILTER (WHERE x.succeeded) AS first_token_p50_ms,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY x.first_token_ms)
            FILTER (WHERE x.succeeded) AS first_token_p95_ms,
        percentile_cont(0.99) WITHIN GROUP (ORDER BY x.first_token_ms)
            FILTER (WHERE x.succeeded) AS first_token_p99_ms,
        avg(x.tokens_per_second) FILTER (WHERE x.succeeded) AS tokens_per_second,
        sum(x.cached_tokens) FILTER (WHERE x.prompt_tokens IS NOT NULL) / nullif(sum(x.prompt_tokens) FILTER (
            WHERE x.cached_tokens IS NOT NULL), 0)::double precision AS cached_share,
        max(x.memory_bytes) AS peak_memory_bytes
    FROM inference_metrics AS x
    WHERE x.session_id = s.id
) AS m;
COMMENT ON VIEW v_inference_latency IS
    'What the requests of each inference session took: percentiles and means are of those that '
    'succeeded.';

CREATE VIEW v_inference_trends AS
SELECT
    s.model_name,
    s.model_version,
    date_trunc('hour', x.recorded_at) AS hour,
    count(DISTINCT x.session_id) AS sessions,
    count(*) AS requests,
    count(*) FILTER (WHERE NOT x.succeeded) AS failed,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY x.latency_ms)
        FILTER (WHERE x.succeeded) AS latency_p50_ms,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY x.latency_ms)
        FILTER (WHERE x.succeeded) AS latency_p95_ms,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY x.latency_ms)
        FILTER (WHERE x.succeeded) AS latency_p99_ms,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY x.first_token_ms)
        FILTER (WHERE x.succeeded) AS first_token_p50_ms,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY x.first_token_ms)
        FILTER (WHERE x.succeeded) AS first_token_p95_ms,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY x.first_token_ms)
        FILTER (WHERE x.succeeded) AS first_token_p99_ms,
    avg(x.tokens_per_second) FILTER (WHERE x.succeeded) AS tokens_per_second,
    sum(x.generated_tokens) AS generated_tokens,
    sum(x.cached_tokens) FILTER (WHERE x.prompt_tokens IS NOT NULL) / nullif(sum(x.prompt_tokens) FILTER (
        WHERE x.cached_tokens IS NOT NULL), 0)::double precision AS cached_share
FROM inference_metrics AS x
JOIN inference_sessions AS s ON s.id = x.session_id
GROUP BY s.model_name, s.model_version, date_trunc('hour', x.recorded_at);
COMMENT ON VIEW v_inference_trends IS
    'What the requests to each model took, hour by hour: percentiles and means are of those that '
    'succeeded.';

CREATE TABLE loaded_weights (
    weights_root bytea NOT NULL CHECK (octet_length(weights_root) = 32),
    weight_set_id bigint NOT NULL REFERENCES weight_sets ON DELETE CASCADE,
    PRIMARY KEY (weights_root, weight_set_id)
);
COMMENT ON TABLE loaded_weights IS
    'Weight sets as engines load them: with buffers and tied tensors beside what is stored, and so '
    'with another root.';
COMMENT ON COLUMN loaded_weights.weights_root IS
    'Root of all tensors of the module: what the caches are keyed by.';
COMMENT ON COLUMN loaded_weights.weight_set_id IS
    'The set that has all of its parameters, and no tensor that it has not.';

CREATE INDEX loaded_weights_weight_set_id_idx ON loaded_weights (weight_set_id);

CREATE VIEW v_models_by_weights AS
SELECT known.weights_root, model.id AS model_id, model.model_name, model.version
FROM (
    SELECT root AS weights_root, id AS weight_set_id FROM weight_sets WHERE root IS NOT NULL
    UNION
    SELECT weights_root, weight_set_id FROM loaded_weights
) AS known
JOIN models AS model ON model.weight_set_id = known.weight_set_id;
COMMENT ON VIEW v_models_by_weights IS
    'Registered models by the root of their weights, as stored and as engines load them.';

-- All of it is UNLOGGED: a cache may be lost, and after a crash it is empty, as a whole. The
-- partitions are generations: what is oldest is truncated, which leaves nothing to vacuum.
CREATE TABLE kv_cache (
    block_key bytea NOT NULL CHECK (octet_length(block_key) = 32),
    generation smallint NOT NULL,
    block_index integer NOT NULL CHECK (block_index >= 0),
    token_count integer NOT NULL CHECK (token_count > 0),
    parent_key bytea CHECK (octet_length(parent_key) = 32),
    weights_root bytea NOT NULL CHECK (octet_length(weights_root) = 32),
    tenant text NOT NULL DEFAULT '',
    tokens bytea NOT NULL,
    digest bytea NOT NULL CHECK (octet_length(digest) = 16),
    codec text NOT NULL CHECK (codec <> ''),
    codec_version integer NOT NULL CHECK (codec_version > 0),
    part_count integer NOT NULL CHECK (part_count > 0),
    raw_bytes bigint NOT NULL CHECK (raw_bytes > 0),
    stored_bytes bigint NOT NULL CHECK (stored_bytes > 0),
    error real CHECK (error >= 0),
    hit_count bigint NOT NULL DEFAULT 0 CHECK (hit_count >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (block_key, generation),
    CONSTRAINT kv_cache_tokens_fit CHECK (octet_length(tokens) = 4 * token_count)
) PARTITION BY LIST (generation);
COMMENT ON TABLE kv_cache IS
    'Keys and values of prompt prefixes, in blocks of tokens, of a group of layers each.';
COMMENT ON COLUMN kv_cache.block_key IS
    'SHA-256 chain over weights, adapter, tenant, layout, block size, parent and tokens.';
COMMENT ON COLUMN kv_cache.generation IS
    'The partition, -1 for what is pinned; a hit in an old one moves the block to the newest.';
COMMENT ON COLUMN kv_cache.parent_key IS
    'The block before it, without which it is of no use. NULL for the first, and for those of '
    'sliding-window layers, which need no more than their window.';
COMMENT ON COLUMN kv_cache.tokens IS
    'Its tokens, 4 bytes each, little-endian: compared when it is loaded.';
COMMENT ON COLUMN kv_cache.digest IS
    'XXH3-128 of the bodies, seeded by the key; a block that does not have it is a miss.';
COMMENT ON COLUMN kv_cache.part_count IS
    'Rows of kv_cache_bodies that hold the block.';
COMMENT ON COLUMN kv_cache.error IS
    'Where it was quantised: the root mean square of the error by that of the values.';

CREATE INDEX kv_cache_parent_key_idx ON kv_cache (parent_key);
CREATE INDEX kv_cache_tenant_idx ON kv_cache (tenant, weights_root);

CREATE TABLE kv_cache_bodies (
    block_key bytea NOT NULL,
    generation smallint NOT NULL,
    part integer NOT NULL CHECK (part >= 0),
    body bytea NOT NULL CHECK (octet_length(body) <= 1048576),
    PRIMARY KEY (block_key, generation, part)
) PARTITION BY LIST (generation);
COMMENT ON TABLE kv_cache_bodies IS
    'The encoded bytes of kv_cache blocks in parts of at most 1 MiB, emptied with their generation.';

ALTER TABLE kv_cache_bodies ALTER COLUMN body SET STORAGE EXTERNAL;

DO $$
BEGIN
    FOR slot IN -1 .. 7 LOOP
        EXECUTE format(
            'CREATE UNLOGGED TABLE kv_cache_%1$s PARTITION OF kv_cache FOR VALUES IN (%2$s)',
            CASE slot WHEN -1 THEN 'pinned' ELSE 'g' || slot END, slot);
        EXECUTE format(
            'CREATE UNLOGGED TABLE kv_cache_bodies_%1$s PARTITION OF kv_cache_bodies '
            'FOR VALUES IN (%2$s) WITH (toast_tuple_target = 8160)',
            CASE slot WHEN -1 THEN 'pinned' ELSE 'g' || slot END, slot);
    END LOOP;
END
$$;

CREATE UNLOGGED TABLE kv_cache_generations (
    generation smallint PRIMARY KEY CHECK (generation BETWEEN -1 AND 7),
    sequence bigint NOT NULL UNIQUE,
    written_bytes bigint NOT NULL DEFAULT 0 CHECK (written_bytes >= 0),
    opened_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE kv_cache_generations IS
    'The generations of kv_cache that are in use; the newest has the highest sequence.';
COMMENT ON COLUMN kv_cache_generations.written_bytes IS
    'Bytes of bodies written since it was emptied, also those of blocks that left it: these count '
    'against the budget.';

CREATE UNLOGGED TABLE kv_cache_usage (
    generation smallint NOT NULL,
    tenant text NOT NULL,
    weights_root bytea NOT NULL CHECK (octet_length(weights_root) = 32),
    blocks bigint NOT NULL CHECK (blocks >= 0),
    stored_bytes bigint NOT NULL CHECK (stored_bytes >= 0),
    PRIMARY KEY (generation, tenant, weights_root)
);
COMMENT ON TABLE kv_cache_usage IS
    'What each generation of kv_cache holds of each tenant and model.';

CREATE UNLOGGED TABLE kv_cache_pins (
    pin_key bytea NOT NULL CHECK (octet_length(pin_key) = 32),
    block_key bytea NOT NULL CHECK (octet_length(block_key) = 32),
    label text NOT NULL DEFAULT '',
    pinned_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pin_key, block_key)
);
COMMENT ON TABLE kv_cache_pins IS
    'What is pinned: of each prefix the blocks that no other of it follows, which stay with all that '
    'they follow.';
COMMENT ON COLUMN kv_cache_pins.pin_key IS
    'The last block of the prefix, of its first group of layers.';

CREATE INDEX kv_cache_pins_block_key_idx ON kv_cache_pins (block_key);

CREATE TABLE kv_cache_counters (
    tenant text NOT NULL,
    weights_root bytea NOT NULL CHECK (octet_length(weights_root) = 32),
    model text NOT NULL DEFAULT '',
    lookups bigint NOT NULL DEFAULT 0 CHECK (lookups >= 0),
    hits bigint NOT NULL DEFAULT 0 CHECK (hits BETWEEN 0 AND lookups),
    asked_tokens bigint NOT NULL DEFAULT 0 CHECK (asked_tokens >= 0),
    hit_tokens bigint NOT NULL DEFAULT 0 CHECK (hit_tokens BETWEEN 0 AND asked_tokens),
    loaded_bytes bigint NOT NULL DEFAULT 0 CHECK (loaded_bytes >= 0),
    stored_blocks bigint NOT NULL DEFAULT 0 CHECK (stored_blocks >= 0),
    stored_bytes bigint NOT NULL DEFAULT 0 CHECK (stored_bytes >= 0),
    refused_blocks bigint NOT NULL DEFAULT 0 CHECK (refused_blocks >= 0),
    damaged_blocks bigint NOT NULL DEFAULT 0 CHECK (damaged_blocks >= 0),
    counted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, weights_root)
);
COMMENT ON TABLE kv_cache_counters IS
    'What kv_cache was asked for and had, by tenant and model, since the counters began.';
COMMENT ON COLUMN kv_cache_counters.model IS
    'What the engine calls the model, at last; empty where it calls it nothing.';
COMMENT ON COLUMN kv_cache_counters.hits IS
    'Lookups that found at least one block.';
COMMENT ON COLUMN kv_cache_counters.refused_blocks IS
    'Blocks that were not kept, since the budget, a quota or the queue had no place.';
COMMENT ON COLUMN kv_cache_counters.damaged_blocks IS
    'Blocks whose bytes did not have their digest, and which were treated as not there.';

CREATE TABLE activation_cache (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    weights_root bytea NOT NULL CHECK (octet_length(weights_root) = 32),
    structure_digest bytea NOT NULL CHECK (octet_length(structure_digest) = 32),
    input_digest bytea NOT NULL CHECK (octet_length(input_digest) = 32),
    capture_id uuid NOT NULL GENERATED ALWAYS AS (encode(substring(
        sha256(weights_root || structure_digest || input_digest) FOR 16), 'hex')::uuid) STORED,
    layer_name text NOT NULL,
    selection jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(selection) = 'object'),
    tensor_id bigint NOT NULL REFERENCES tensor_metadata,
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    hit_count bigint NOT NULL DEFAULT 0 CHECK (hit_count >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);
COMMENT ON TABLE activation_cache IS
    'Activations of a module for an input, by the digest of the weights: other weights are a miss.';
COMMENT ON COLUMN activation_cache.structure_digest IS
    'SHA-256 of what the weights do not say: the config, the modules and their settings.';
COMMENT ON COLUMN activation_cache.input_digest IS
    'SHA-256 of the input tokens, the attention mask and what else the model was given.';
COMMENT ON COLUMN activation_cache.capture_id IS
    'The same for all that one model gave for one input.';
COMMENT ON COLUMN activation_cache.layer_name IS
    'The module''s name: model.layers.3.mlp.';
COMMENT ON COLUMN activation_cache.selection IS
    'What part was kept: positions, dtype; empty means all, as computed.';

-- By a hash of the selection: a list of many positions is longer than an index takes.
CREATE UNIQUE INDEX activation_cache_key ON activation_cache (weights_root, input_digest,
    layer_name, structure_digest, hashtextextended(selection::text, 0));
CREATE INDEX activation_cache_capture_id_idx ON activation_cache (capture_id);
CREATE INDEX activation_cache_tensor_id_idx ON activation_cache (tensor_id);
CREATE INDEX activation_cache_last_used_at_idx ON activation_cache (last_used_at);

CREATE TABLE attention_captures (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id uuid REFERENCES inference_sessions ON DELETE CASCADE,
    label text,
    weights_root bytea CHECK (octet_length(weights_root) = 32),
    input_digest bytea NOT NULL CHECK (octet_length(input_digest) = 32),
    sequence_index integer NOT NULL CHECK (sequence_index >= 0),
    token_count integer NOT NULL CHECK (token_count > 0),
    token_ids bigint[] CHECK (cardinality(token_ids) = token_count),
    token_texts text[] CHECK (cardinality(token_texts) = token_count),
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    captured_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);
COMMENT ON TABLE attention_captures IS
    'Sequences whose attention was captured; what goes, goes with all its heads.';
COMMENT ON COLUMN attention_captures.input_digest IS
    'SHA-256 of the input that the sequence was in, as in activation_cache.';
COMMENT ON COLUMN attention_captures.sequence_index IS
    'Its place in the batch.';
COMMENT ON COLUMN attention_captures.token_ids IS
    'NULL where the model was given something else, such as vectors.';
COMMENT ON COLUMN attention_captures.size_bytes IS
    'Bytes of all packed patterns: what counts against the budget.';

CREATE INDEX attention_captures_session_id_idx
    ON attention_captures (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX attention_captures_last_used_at_idx ON attention_captures (last_used_at);

CREATE TABLE attention_patterns (
    capture_id uuid NOT NULL REFERENCES attention_captures ON DELETE CASCADE,
    layer_index integer NOT NULL CHECK (layer_index >= 0),
    head_index integer NOT NULL CHECK (head_index >= 0),
    query_count integer NOT NULL CHECK (query_count > 0),
    key_count integer NOT NULL CHECK (key_count > 0),
    is_causal boolean NOT NULL,
    dtype text NOT NULL CHECK (dtype IN ('F32', 'F16', 'BF16')),
    entropy real[] NOT NULL,
    sink_mass real[] NOT NULL,
    peak real[] NOT NULL,
    packed bytea NOT NULL,
    PRIMARY KEY (capture_id, layer_index, head_index),
    CONSTRAINT attention_patterns_causal_sees_itself
        CHECK (NOT is_causal OR key_count >= query_count),
    CONSTRAINT attention_patterns_one_for_each_query
        CHECK (cardinality(entropy) = query_count AND cardinality(sink_mass) = query_count
            AND cardinality(peak) = query_count),
    CONSTRAINT attention_patterns_packed_fits CHECK (
        octet_length(packed) = CASE dtype WHEN 'F32' THEN 4 ELSE 2 END
            * CASE WHEN is_causal
                THEN query_count::bigint * (key_count - query_count)
                    + query_count::bigint * (query_count + 1) / 2
                ELSE query_count::bigint * key_count END)
) WITH (toast_tuple_target = 8160);
COMMENT ON TABLE attention_patterns IS
    'Attention that was captured, one row for each head of a capture.';
COMMENT ON COLUMN attention_patterns.is_causal IS
    'Whether no query gives anything to a key behind it: then those are left out.';
COMMENT ON COLUMN attention_patterns.entropy IS
    'For each query, the entropy of its attention in nats.';
COMMENT ON COLUMN attention_patterns.sink_mass IS
    'For each query, the attention that goes to the first key.';
COMMENT ON COLUMN attention_patterns.peak IS
    'For each query, the most that it gives to one key.';
COMMENT ON COLUMN attention_patterns.packed IS
    'The rows one after another, causal ones without the keys they cannot see; little-endian. '
    'attention_row() reads one.';

-- Uncompressed, so that substring() fetches the row of one token and not the whole head.
ALTER TABLE attention_patterns ALTER COLUMN packed SET STORAGE EXTERNAL;

CREATE FUNCTION arc_halo_floats(raw bytea, dtype text) RETURNS real[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
    WITH sized AS (
        SELECT CASE dtype WHEN 'F32' THEN 4 WHEN 'F16' THEN 2 WHEN 'BF16' THEN 2 END AS width
    ), numbered AS (
        SELECT place, CASE dtype
            WHEN 'F32' THEN get_byte(raw, 4 * place)::bigint
                | (get_byte(raw, 4 * place + 1)::bigint << 8)
                | (get_byte(raw, 4 * place + 2)::bigint << 16)
                | (get_byte(raw, 4 * place + 3)::bigint << 24)
            WHEN 'BF16' THEN (get_byte(raw, 2 * place)::bigint << 16)
                | (get_byte(raw, 2 * place + 1)::bigint << 24)
            ELSE get_byte(raw, 2 * place)::bigint | (get_byte(raw, 2 * place + 1)::bigint << 8)
            END AS bits
        FROM sized, generate_series(0, octet_length(raw) / width - 1) AS place
    ), parts AS (
        SELECT place, CASE dtype
            WHEN 'F16' THEN bits >> 15 ELSE bits >> 31 END AS sign, CASE dtype
            WHEN 'F16' THEN (bits >> 10) & 31 ELSE (bits >> 23) & 255 END AS exponent, CASE dtype
            WHEN 'F16' THEN bits & 1023 ELSE bits & 8388607 END AS fraction
        FROM numbered
    ), sizes AS (
        SELECT place, CASE sign WHEN 1 THEN -1.0::float8 ELSE 1.0::float8 END AS sign,
            CASE
                WHEN exponent = CASE dtype WHEN 'F16' THEN 31 ELSE 255 END
                    THEN CASE fraction WHEN 0 THEN 'Infinity'::float8 ELSE 'NaN'::float8 END
                WHEN dtype = 'F16' THEN power(2.0::float8, greatest(exponent, 1) - 25)
                    * (fraction + CASE exponent WHEN 0 THEN 0 ELSE 1024 END)
                ELSE power(2.0::float8, greatest(exponent, 1) - 150)
                    * (fraction + CASE exponent WHEN 0 THEN 0 ELSE 8388608 END)
            END AS size
        FROM parts
    )
    SELECT coalesce(array_agg((sign * size)::real ORDER BY place), '{}') FROM sizes
);
COMMENT ON FUNCTION arc_halo_floats(bytea, text) IS
    'The numbers that little-endian bytes of F32, F16 or BF16 are.';

CREATE FUNCTION attention_row(capture uuid, layer integer, head integer, query integer)
RETURNS real[]
LANGUAGE sql STABLE STRICT PARALLEL SAFE
RETURN (
    WITH place AS (
        SELECT capture_id, layer_index, head_index, dtype,
            CASE dtype WHEN 'F32' THEN 4 ELSE 2 END AS width,
            CASE WHEN is_causal
                THEN query::bigint * (key_count - query_count) + query::bigint * (query + 1) / 2
                ELSE query::bigint * key_count END AS start,
            CASE WHEN is_causal THEN key_count - query_count + query + 1 ELSE key_count END AS keys
        FROM attention_patterns
        WHERE capture_id = capture AND layer_index = layer AND head_index = head
          AND query >= 0 AND query < query_count
    ), cut AS MATERIALIZED (
        SELECT dtype, substring(packed FROM (1 + width * start)::integer FOR width * keys) AS raw
        FROM place JOIN attention_patterns USING (capture_id, layer_index, head_index, dtype)
    )
    SELECT arc_halo_floats(raw, dtype) FROM cut
);
COMMENT ON FUNCTION attention_row(uuid, integer, integer, integer) IS
    'What one query of a head gives to each key that it sees, without reading the others. NULL '
    'where there is no such query; all are counted from 0.';

CREATE VIEW v_attention_heads AS
SELECT
    p.capture_id,
    c.label,
    c.session_id,
    c.captured_at,
    p.layer_index,
    p.head_index,
    p.query_count,
    p.key_count,
    p.is_causal,
    p.dtype,
    q.mean_entropy,
    q.max_entropy,
    q.mean_sink_mass,
    q.max_sink_mass,
    q.mean_peak,
    q.max_peak,
    octet_length(p.packed) AS size_bytes
FROM attention_patterns AS p
JOIN attention_captures AS c ON c.id = p.capture_id
CROSS JOIN LATERAL (
    SELECT avg(entropy) AS mean_entropy, max(entropy) AS max_entropy,
        avg(sink_mass) AS mean_sink_mass, max(sink_mass) AS max_sink_mass,
        avg(peak) AS mean_peak, max(peak) AS max_peak
    FROM unnest(p.entropy, p.sink_mass, p.peak) AS each (entropy, sink_mass, peak)
) AS q;
COMMENT ON VIEW v_attention_heads IS
    'One row for each head of each capture: how spread its attention is, how much goes to the '
    'first key, and how much to one key at most, as means and maxima over the queries.';

CREATE TABLE cache_policies (
    name text PRIMARY KEY CHECK (name IN ('kv_cache', 'activation_cache', 'attention_patterns')),
    id uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    budget_bytes bigint NOT NULL CHECK (budget_bytes > 0),
    ttl interval CHECK (ttl > interval '0'),
    block_tokens integer CHECK (block_tokens > 0),
    codec text CHECK (codec <> ''),
    quota_bytes bigint CHECK (quota_bytes > 0),
    quotas jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(quotas) = 'object'),
    description text,
    tags jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tags) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT cache_policies_blocks_are_of_kv_cache
        CHECK (num_nonnulls(block_tokens, codec) = CASE name WHEN 'kv_cache' THEN 2 ELSE 0 END),
    CONSTRAINT cache_policies_quotas_are_of_kv_cache
        CHECK (name = 'kv_cache' OR (quota_bytes IS NULL AND quotas = '{}'))
);
COMMENT ON TABLE cache_policies IS
    'What a manifest declares of the caches: how much each may take, and for how long. One that is '
    'not here has the usual budget.';
COMMENT ON COLUMN cache_policies.ttl IS
    'How long that stays which nobody uses; NULL as long as the budget allows.';
COMMENT ON COLUMN cache_policies.block_tokens IS
    'Tokens in a block of the KV cache.';
COMMENT ON COLUMN cache_policies.codec IS
    'How blocks of the KV cache are stored.';
COMMENT ON COLUMN cache_policies.quota_bytes IS
    'What a tenant may take of the budget; NULL for all of it.';
COMMENT ON COLUMN cache_policies.quotas IS
    'Bytes by tenant, for those that have a quota of their own.';

CREATE TRIGGER cache_policies_touch BEFORE UPDATE ON cache_policies
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_touch_updated_at();
