-- Fusion: strategies, reactors with their members and interactions, and what they did.
-- depends: 0003.models

CREATE TABLE fusion_strategies (
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,127}$'),
    id uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    uses text NOT NULL CHECK (uses <> ''),
    params jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(params) = 'object'),
    description text,
    tags jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tags) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE fusion_strategies IS
    'Strategies that a manifest declares: an implementation by name, with params.';
COMMENT ON COLUMN fusion_strategies.uses IS
    'The implementation, as a plugin names it; code is never stored.';

CREATE TRIGGER fusion_strategies_touch BEFORE UPDATE ON fusion_strategies
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_touch_updated_at();

CREATE TABLE cognitive_fusion_reactors (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    reactor_name text NOT NULL UNIQUE CHECK (reactor_name ~ '^[a-z0-9][a-z0-9._-]{0,127}$'),
    reactor_type text NOT NULL CHECK (reactor_type IN
        ('merge', 'ensemble', 'cascade', 'parallel', 'hierarchical')),
    strategy_name text NOT NULL CHECK (strategy_name <> ''),
    strategy_uses text NOT NULL CHECK (strategy_uses <> ''),
    params jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(params) = 'object'),
    base_model_id uuid REFERENCES models DEFERRABLE INITIALLY DEFERRED,
    produces_model_id uuid REFERENCES models ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED,
    recipe jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(recipe) = 'object'),
    run jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(run) = 'object'),
    fitted_set_id bigint REFERENCES weight_sets,
    config jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object'),
    status text NOT NULL DEFAULT 'registered' CHECK (status IN
        ('registered', 'fusing', 'ready', 'disabled', 'failed')),
    description text,
    tags jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tags) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT cognitive_fusion_reactors_only_merge_produces
        CHECK (reactor_type = 'merge' OR produces_model_id IS NULL)
);
COMMENT ON TABLE cognitive_fusion_reactors IS
    'Reactors: merge fuses its members'' weights into a model, the other types fuse outputs when they run.';
COMMENT ON COLUMN cognitive_fusion_reactors.strategy_name IS
    'As declared: a row of fusion_strategies, or an implementation by its own name.';
COMMENT ON COLUMN cognitive_fusion_reactors.strategy_uses IS
    'The implementation that strategy_name resolved to.';
COMMENT ON COLUMN cognitive_fusion_reactors.params IS
    'The params that the implementation gets, resolved.';
COMMENT ON COLUMN cognitive_fusion_reactors.produces_model_id IS
    'The model a merge writes; NULL after that model was deleted.';
COMMENT ON COLUMN cognitive_fusion_reactors.recipe IS
    'What differs among the tensors of a merge: rules by name, slices of layers, dtypes.';
COMMENT ON COLUMN cognitive_fusion_reactors.run IS
    'How it runs: failure policy, quorum, timeout, threshold, recording; its defaults filled in.';
COMMENT ON COLUMN cognitive_fusion_reactors.fitted_set_id IS
    'What its strategy has learnt from examples; no apply changes it.';
COMMENT ON COLUMN cognitive_fusion_reactors.config IS
    'What else the manifest says.';

CREATE INDEX cognitive_fusion_reactors_base_model_id_idx
    ON cognitive_fusion_reactors (base_model_id) WHERE base_model_id IS NOT NULL;
CREATE INDEX cognitive_fusion_reactors_produces_model_id_idx
    ON cognitive_fusion_reactors (produces_model_id) WHERE produces_model_id IS NOT NULL;
CREATE INDEX cognitive_fusion_reactors_fitted_set_id_idx
    ON cognitive_fusion_reactors (fitted_set_id) WHERE fitted_set_id IS NOT NULL;

CREATE TRIGGER cognitive_fusion_reactors_touch BEFORE UPDATE ON cognitive_fusion_reactors
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_touch_updated_at();

CREATE TABLE reactor_models (
    reactor_id uuid NOT NULL
        REFERENCES cognitive_fusion_reactors ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    model_id uuid NOT NULL REFERENCES models DEFERRABLE INITIALLY DEFERRED,
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    role text NOT NULL CHECK (role IN ('primary', 'secondary', 'validator', 'specialist')),
    weight double precision NOT NULL DEFAULT 1.0
        CHECK (weight > '-Infinity' AND weight < 'Infinity'),
    priority integer,
    cost double precision NOT NULL DEFAULT 1.0 CHECK (cost >= 0 AND cost < 'Infinity'),
    domains text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (reactor_id, model_id),
    UNIQUE (reactor_id, ordinal) DEFERRABLE
);
COMMENT ON TABLE reactor_models IS
    'The members of a reactor. A model is a member once; it cannot be deleted while it is one.';
COMMENT ON COLUMN reactor_models.ordinal IS
    'The order of declaration, which is the order in which strategies see the members.';
COMMENT ON COLUMN reactor_models.weight IS
    'As declared, not normalised; it may be negative.';
COMMENT ON COLUMN reactor_models.priority IS
    'The order in a cascade, lowest first; NULL means the order of declaration.';

COMMENT ON COLUMN reactor_models.cost IS
    'What one answer costs, in any unit; a cascade adds it up.';
COMMENT ON COLUMN reactor_models.domains IS
    'Of a specialist: the domains whose inputs it is asked.';

CREATE TABLE reactor_adapters (
    reactor_id uuid NOT NULL,
    model_id uuid NOT NULL,
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    adapter_id uuid NOT NULL REFERENCES models DEFERRABLE INITIALLY DEFERRED,
    scale double precision NOT NULL DEFAULT 1.0 CHECK (scale > '-Infinity' AND scale < 'Infinity'),
    PRIMARY KEY (reactor_id, model_id, ordinal),
    FOREIGN KEY (reactor_id, model_id) REFERENCES reactor_models ON DELETE CASCADE
        DEFERRABLE INITIALLY DEFERRED
);
COMMENT ON TABLE reactor_adapters IS
    'LoRA adapters that are added to a member before it is fused. One cannot be deleted while it is used.';
COMMENT ON COLUMN reactor_adapters.scale IS
    'What the adapter is multiplied by, besides its own alpha and rank.';

CREATE INDEX reactor_adapters_adapter_id_idx ON reactor_adapters (adapter_id);

CREATE INDEX reactor_models_model_id_idx ON reactor_models (model_id);

CREATE TABLE model_interaction_graph (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reactor_id uuid NOT NULL
        REFERENCES cognitive_fusion_reactors ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    from_model_id uuid NOT NULL,
    to_model_id uuid NOT NULL,
    interaction_kind text NOT NULL CHECK (interaction_kind IN
        ('feeds_into', 'validates', 'augments', 'corrects')),
    weight double precision NOT NULL DEFAULT 1.0
        CHECK (weight > '-Infinity' AND weight < 'Infinity'),
    UNIQUE (reactor_id, from_model_id, to_model_id, interaction_kind),
    FOREIGN KEY (reactor_id, from_model_id) REFERENCES reactor_models
        DEFERRABLE INITIALLY DEFERRED,
    FOREIGN KEY (reactor_id, to_model_id) REFERENCES reactor_models
        DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT model_interaction_graph_no_loop CHECK (from_model_id <> to_model_id)
);
COMMENT ON TABLE model_interaction_graph IS
    'Which member of a reactor feeds, validates, augments or corrects which other.';

CREATE INDEX model_interaction_graph_to_model_id_idx
    ON model_interaction_graph (reactor_id, to_model_id);

-- What was asked and answered is json, not jsonb, and not compressed: hundreds of numbers are kept as
-- they come, and a run does not wait for more.
CREATE TABLE fusion_operations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    reactor_id uuid REFERENCES cognitive_fusion_reactors ON DELETE SET NULL
        DEFERRABLE INITIALLY DEFERRED,
    reactor_name text,
    operation_type text NOT NULL CHECK (operation_type IN
        ('merge', 'ensemble', 'cascade', 'parallel', 'hierarchical', 'evaluation')),
    status text NOT NULL DEFAULT 'pending' CHECK (status IN
        ('pending', 'processing', 'completed', 'failed')),
    strategy_name text NOT NULL CHECK (strategy_name <> ''),
    strategy_version text CHECK (strategy_version <> ''),
    params jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(params) = 'object'),
    recipe_key bytea CHECK (octet_length(recipe_key) = 32),
    build_id uuid REFERENCES weight_builds ON DELETE SET NULL,
    output_model_id uuid REFERENCES models ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED,
    output_model_name text,
    output_model_version text,
    output_root bytea CHECK (octet_length(output_root) = 32),
    input json,
    output json,
    output_set_id bigint REFERENCES weight_sets,
    error text,
    input_count integer CHECK (input_count >= 0),
    tenant text NOT NULL DEFAULT '',
    execution_ms double precision CHECK (execution_ms >= 0),
    cost double precision,
    tensor_count integer CHECK (tensor_count >= 0),
    size_bytes bigint CHECK (size_bytes >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz CHECK (finished_at >= started_at),
    expires_at timestamptz,
    CONSTRAINT fusion_operations_finished_has_time
        CHECK ((status IN ('completed', 'failed')) = (finished_at IS NOT NULL)),
    CONSTRAINT fusion_operations_failed_has_error CHECK (status <> 'failed' OR error IS NOT NULL)
);
ALTER TABLE fusion_operations ALTER COLUMN input SET STORAGE EXTERNAL;
ALTER TABLE fusion_operations ALTER COLUMN output SET STORAGE EXTERNAL;
COMMENT ON TABLE fusion_operations IS
    'Every fusion: merges of weights with their lineage, and runs and evaluations of reactors.';
COMMENT ON COLUMN fusion_operations.reactor_name IS
    'Stays when the reactor is deleted; NULL for a fusion that no reactor asked for.';
COMMENT ON COLUMN fusion_operations.strategy_name IS
    'The implementation that computed it.';
COMMENT ON COLUMN fusion_operations.strategy_version IS
    'Its version; of a drop-in file without one, the SHA-256 of the file.';
COMMENT ON COLUMN fusion_operations.params IS
    'The params used, defaults included.';
COMMENT ON COLUMN fusion_operations.recipe_key IS
    'SHA-256 of strategy, version, params and input roots: equal keys are never computed twice.';
COMMENT ON COLUMN fusion_operations.output_model_name IS
    'Name and version stay when the model is deleted.';
COMMENT ON COLUMN fusion_operations.output_root IS
    'Root of the weights that a merge made.';
COMMENT ON COLUMN fusion_operations.input IS
    'What a reactor was asked, as far as its record policy keeps it.';
COMMENT ON COLUMN fusion_operations.output IS
    'What was answered, as far as the record policy keeps it; of an evaluation its figures.';
COMMENT ON COLUMN fusion_operations.output_set_id IS
    'Where large arrays of all answers are kept, as a weight set.';
COMMENT ON COLUMN fusion_operations.input_count IS
    'Inputs of the batch that a reactor was asked.';
COMMENT ON COLUMN fusion_operations.tenant IS
    'On whose behalf, as the key of the request says; the empty text where there are no tenants.';
COMMENT ON COLUMN fusion_operations.execution_ms IS
    'From the first member asked to the fused answer.';
COMMENT ON COLUMN fusion_operations.cost IS
    'The members'' costs of all answers, added up.';
COMMENT ON COLUMN fusion_operations.expires_at IS
    'When input and output may be removed; NULL keeps them.';

CREATE INDEX fusion_operations_reactor_id_idx
    ON fusion_operations (reactor_id, created_at) WHERE reactor_id IS NOT NULL;
CREATE INDEX fusion_operations_output_model_id_idx
    ON fusion_operations (output_model_id) WHERE output_model_id IS NOT NULL;
CREATE INDEX fusion_operations_build_id_idx
    ON fusion_operations (build_id) WHERE build_id IS NOT NULL;
CREATE INDEX fusion_operations_expires_at_idx
    ON fusion_operations (expires_at) WHERE input IS NOT NULL OR output IS NOT NULL;
CREATE INDEX fusion_operations_output_set_id_idx
    ON fusion_operations (output_set_id) WHERE output_set_id IS NOT NULL;
CREATE INDEX fusion_operations_output_root_idx
    ON fusion_operations (output_root) WHERE output_root IS NOT NULL;

CREATE TABLE fusion_operation_inputs (
    operation_id uuid NOT NULL REFERENCES fusion_operations ON DELETE CASCADE,
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    model_name text NOT NULL,
    model_version text NOT NULL,
    root bytea CHECK (octet_length(root) = 32),
    role text CHECK (role IN ('primary', 'secondary', 'validator', 'specialist')),
    is_base boolean NOT NULL DEFAULT false,
    weight double precision,
    status text CHECK (status IN ('answered', 'failed', 'fell_back', 'not_asked')),
    answered_count integer CHECK (answered_count >= 0),
    execution_ms double precision CHECK (execution_ms >= 0),
    cost double precision,
    output json,
    error text,
    PRIMARY KEY (operation_id, ordinal),
    CONSTRAINT fusion_operation_inputs_failed_has_error
        CHECK (status NOT IN ('failed', 'fell_back') OR error IS NOT NULL),
    CONSTRAINT fusion_operation_inputs_base_has_no_role CHECK (NOT is_base OR role IS NULL)
);
ALTER TABLE fusion_operation_inputs ALTER COLUMN output SET STORAGE EXTERNAL;
COMMENT ON TABLE fusion_operation_inputs IS
    'Lineage: the models that went into a fusion, by root. No foreign keys, so that it outlives them.';
COMMENT ON COLUMN fusion_operation_inputs.root IS
    'Root of the weights used; NULL for a member that has none here.';
COMMENT ON COLUMN fusion_operation_inputs.status IS
    'Of a run: whether the member answered, failed, had another answer in its place, or was not asked.';
COMMENT ON COLUMN fusion_operation_inputs.answered_count IS
    'To how many inputs of the batch it answered.';
COMMENT ON COLUMN fusion_operation_inputs.output IS
    'What it answered, as far as the record policy keeps it.';
COMMENT ON COLUMN fusion_operation_inputs.is_base IS
    'The base model, which has neither role nor weight.';

CREATE INDEX fusion_operation_inputs_root_idx
    ON fusion_operation_inputs (root) WHERE root IS NOT NULL;

CREATE TABLE fused_tensors (
    tensor_key bytea PRIMARY KEY CHECK (octet_length(tensor_key) = 32),
    recipe jsonb NOT NULL CHECK (jsonb_typeof(recipe) = 'object'),
    tensor_digest bytea CHECK (octet_length(tensor_digest) = 32),
    facts jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(facts) = 'object'),
    cpu_seconds double precision CHECK (cpu_seconds >= 0),
    made_at timestamptz,
    CONSTRAINT fused_tensors_made_has_digest CHECK ((tensor_digest IS NULL) = (made_at IS NULL))
);
COMMENT ON TABLE fused_tensors IS
    'Tensors that merges have computed, or are to: each once, whatever merges it is a part of.';
COMMENT ON COLUMN fused_tensors.tensor_key IS
    'SHA-256 of the recipe: equal keys are never computed twice.';
COMMENT ON COLUMN fused_tensors.recipe IS
    'Strategy, version, params, weights and the digests of the inputs: all it takes to compute it again.';
COMMENT ON COLUMN fused_tensors.tensor_digest IS
    'What came out; it stays when the tensor itself was collected. NULL until it is made.';
COMMENT ON COLUMN fused_tensors.facts IS
    'What was seen on the way: norms, cosines, conflicts of signs, density, of a sample of elements.';
COMMENT ON COLUMN fused_tensors.cpu_seconds IS
    'Of the thread that computed and stored it.';

CREATE INDEX fused_tensors_tensor_digest_idx
    ON fused_tensors (tensor_digest) WHERE tensor_digest IS NOT NULL;

CREATE INDEX fused_tensors_strategy_made_at_idx
    ON fused_tensors ((recipe ->> 'strategy'), made_at DESC) WHERE cpu_seconds IS NOT NULL;

CREATE TABLE fused_tensor_inputs (
    tensor_key bytea NOT NULL REFERENCES fused_tensors ON DELETE CASCADE,
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    is_base boolean NOT NULL DEFAULT false,
    weight double precision,
    tensor_digest bytea NOT NULL CHECK (octet_length(tensor_digest) = 32),
    PRIMARY KEY (tensor_key, ordinal)
);
COMMENT ON TABLE fused_tensor_inputs IS
    'Lineage, tensor by tensor: the tensors that went in, by digest, so that it outlives them.';
COMMENT ON COLUMN fused_tensor_inputs.weight IS
    'The weight used for this tensor; the base has none, nor has what only gives rows of tokens.';

CREATE INDEX fused_tensor_inputs_tensor_digest_idx ON fused_tensor_inputs (tensor_digest);

CREATE TABLE fusion_tasks (
    build_id uuid NOT NULL REFERENCES weight_builds ON DELETE CASCADE,
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    tensor_name text NOT NULL,
    tensor_key bytea REFERENCES fused_tensors,
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    labels jsonb NOT NULL CHECK (jsonb_typeof(labels) = 'array'),
    status text NOT NULL DEFAULT 'todo' CHECK (status IN ('todo', 'done', 'failed')),
    is_reused boolean NOT NULL DEFAULT false,
    worker text,
    error jsonb CHECK (jsonb_typeof(error) = 'object'),
    finished_at timestamptz,
    PRIMARY KEY (build_id, ordinal),
    UNIQUE (build_id, tensor_name),
    CONSTRAINT fusion_tasks_todo_has_no_time CHECK ((status = 'todo') = (finished_at IS NULL)),
    CONSTRAINT fusion_tasks_failed_has_error CHECK ((status = 'failed') = (error IS NOT NULL))
);
COMMENT ON TABLE fusion_tasks IS
    'The tensors of a merge: what is to be done, and by whom it was. Workers claim a row by locking it.';
COMMENT ON COLUMN fusion_tasks.tensor_key IS
    'NULL for a tensor that is taken as it is.';
COMMENT ON COLUMN fusion_tasks.labels IS
    'The model and the tensor behind each input, in the order of the inputs, for people.';
COMMENT ON COLUMN fusion_tasks.is_reused IS
    'Whether it was there already: nothing was computed.';
COMMENT ON COLUMN fusion_tasks.worker IS
    'Host and process that finished it.';

CREATE INDEX fusion_tasks_todo_idx
    ON fusion_tasks (build_id, size_bytes DESC, ordinal) WHERE status = 'todo';
CREATE INDEX fusion_tasks_failed_idx ON fusion_tasks (build_id) WHERE status = 'failed';
CREATE INDEX fusion_tasks_tensor_key_idx
    ON fusion_tasks (tensor_key) WHERE tensor_key IS NOT NULL;

CREATE TABLE cognitive_state (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    reactor_id uuid NOT NULL REFERENCES cognitive_fusion_reactors ON DELETE CASCADE,
    state_type text NOT NULL CHECK (state_type IN
        ('context', 'memory', 'attention_focus', 'goal')),
    state_key text NOT NULL,
    state_value jsonb NOT NULL,
    priority integer NOT NULL DEFAULT 0,
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (reactor_id, state_type, state_key)
);
COMMENT ON TABLE cognitive_state IS
    'What a reactor keeps between runs, readable and writable by its strategy.';
COMMENT ON COLUMN cognitive_state.priority IS
    'Higher ones are read first.';
COMMENT ON COLUMN cognitive_state.expires_at IS
    'Not read from then on; NULL never expires.';

CREATE TRIGGER cognitive_state_touch BEFORE UPDATE ON cognitive_state
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_touch_updated_at();

CREATE TABLE reactor_metrics (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reactor_id uuid NOT NULL REFERENCES cognitive_fusion_reactors ON DELETE CASCADE,
    operation_id uuid REFERENCES fusion_operations ON DELETE CASCADE,
    metric text NOT NULL CHECK (metric IN
        ('throughput', 'latency', 'accuracy', 'coherence', 'diversity')),
    value double precision NOT NULL,
    sample_count integer NOT NULL DEFAULT 1 CHECK (sample_count > 0),
    details jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(details) = 'object'),
    recorded_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE reactor_metrics IS
    'Measurements of a reactor over time: of one operation, or of a window of them.';
COMMENT ON COLUMN reactor_metrics.value IS
    'Throughput in inputs a second, latency in milliseconds, the others from 0 to 1.';
COMMENT ON COLUMN reactor_metrics.operation_id IS
    'The operation that was measured; NULL for a window.';

CREATE INDEX reactor_metrics_reactor_id_idx
    ON reactor_metrics (reactor_id, metric, recorded_at);
CREATE INDEX reactor_metrics_operation_id_idx
    ON reactor_metrics (operation_id) WHERE operation_id IS NOT NULL;

CREATE TABLE api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL CHECK (name <> ''),
    tenant text NOT NULL DEFAULT '',
    key_sha256 bytea NOT NULL UNIQUE CHECK (octet_length(key_sha256) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
);
COMMENT ON TABLE api_keys IS
    'Keys with which reactors are asked over HTTP. The keys themselves are nowhere.';
COMMENT ON COLUMN api_keys.name IS
    'Of those that are not revoked no two have one name.';
COMMENT ON COLUMN api_keys.tenant IS
    'Who asks with it, written into every operation; the empty text where there are no tenants.';
COMMENT ON COLUMN api_keys.key_sha256 IS
    'SHA-256 of the key, which is 32 random bytes and so cannot be guessed from it.';
COMMENT ON COLUMN api_keys.expires_at IS
    'Refused from then on; NULL never expires.';
COMMENT ON COLUMN api_keys.revoked_at IS
    'Refused from then on.';
COMMENT ON COLUMN api_keys.last_used_at IS
    'To the minute.';

CREATE UNIQUE INDEX api_keys_name_key ON api_keys (name) WHERE revoked_at IS NULL;

CREATE VIEW v_reactor_status AS
SELECT
    r.id AS reactor_id,
    r.reactor_name,
    r.reactor_type,
    r.strategy_name,
    r.strategy_uses,
    r.status,
    m.member_count,
    m.members,
    g.interaction_count,
    CASE WHEN b.id IS NOT NULL THEN b.model_name || '@' || b.version END AS base_model,
    CASE WHEN p.id IS NOT NULL THEN p.model_name || '@' || p.version END AS produces_model,
    p.status AS produces_status,
    o.operation_count,
    o.running_count,
    o.completed_count,
    o.failed_count,
    o.mean_seconds,
    l.id AS last_operation_id,
    l.status AS last_operation_status,
    l.created_at AS last_operation_at,
    l.error AS last_error,
    r.updated_at
FROM cognitive_fusion_reactors AS r
LEFT JOIN models AS b ON b.id = r.base_model_id
LEFT JOIN models AS p ON p.id = r.produces_model_id
CROSS JOIN LATERAL (
    SELECT
        count(*) AS member_count,
        coalesce(array_agg(y.model_name || '@' || y.version ORDER BY x.ordinal), '{}') AS members
    FROM reactor_models AS x JOIN models AS y ON y.id = x.model_id
    WHERE x.reactor_id = r.id
) AS m
CROSS JOIN LATERAL (
    SELECT count(*) AS interaction_count
    FROM model_interaction_graph AS x
    WHERE x.reactor_id = r.id
) AS g
CROSS JOIN LATERAL (
    SELECT
        count(*) AS operation_count,
        count(*) FILTER (WHERE x.status IN ('pending', 'processing')) AS running_count,
        count(*) FILTER (WHERE x.status = 'completed') AS completed_count,
        count(*) FILTER (WHERE x.status = 'failed') AS failed_count,
        (avg(extract(epoch FROM x.finished_at - x.started_at))
            FILTER (WHERE x.status = 'completed'))::double precision AS mean_seconds
    FROM fusion_operations AS x
    WHERE x.reactor_id = r.id
) AS o
LEFT JOIN LATERAL (
    SELECT x.id, x.status, x.created_at, x.error
    FROM fusion_operations AS x
    WHERE x.reactor_id = r.id
    ORDER BY x.created_at DESC, x.id
    LIMIT 1
) AS l ON true;
COMMENT ON VIEW v_reactor_status IS
    'One row for each reactor: its members, what it produces, and how its operations went.';

CREATE VIEW v_reactor_trends AS
SELECT
    r.reactor_name,
    m.metric,
    date_trunc('hour', m.recorded_at) AS hour,
    count(*) AS measurements,
    sum(m.sample_count) AS samples,
    avg(m.value) AS mean,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY m.value) AS median,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY m.value) AS p95
FROM reactor_metrics AS m
JOIN cognitive_fusion_reactors AS r ON r.id = m.reactor_id
GROUP BY r.reactor_name, m.metric, date_trunc('hour', m.recorded_at);
COMMENT ON VIEW v_reactor_trends IS
    'What was measured of reactors, hour by hour.';

CREATE VIEW v_fused_tensors AS
SELECT
    b.weight_set_id,
    s.root,
    k.tensor_name,
    f.tensor_key,
    f.tensor_digest,
    k.is_reused,
    f.recipe ->> 'strategy' AS strategy,
    f.recipe ->> 'strategy_version' AS strategy_version,
    f.recipe -> 'params' AS params,
    f.recipe -> 'weights' AS weights,
    (f.facts ->> 'density')::double precision AS density,
    (f.facts ->> 'sign_conflict')::double precision AS sign_conflict,
    (f.facts ->> 'mean_cosine')::double precision AS mean_cosine,
    (f.facts ->> 'change_norm')::double precision AS change_norm,
    f.facts,
    f.cpu_seconds,
    f.made_at
FROM fusion_tasks AS k
JOIN weight_builds AS b ON b.id = k.build_id
JOIN weight_sets AS s ON s.id = b.weight_set_id
LEFT JOIN fused_tensors AS f ON f.tensor_key = k.tensor_key;
COMMENT ON VIEW v_fused_tensors IS
    'How each tensor of merged weights was computed, and what was seen on the way.';

CREATE VIEW v_tensor_lineage AS
SELECT
    b.weight_set_id,
    s.root,
    k.tensor_name,
    f.tensor_digest,
    i.ordinal,
    k.labels -> i.ordinal ->> 'model' AS input_model,
    k.labels -> i.ordinal ->> 'tensor' AS input_tensor,
    i.tensor_digest AS input_digest,
    i.is_base,
    i.weight
FROM fusion_tasks AS k
JOIN weight_builds AS b ON b.id = k.build_id
JOIN weight_sets AS s ON s.id = b.weight_set_id
JOIN fused_tensors AS f ON f.tensor_key = k.tensor_key
JOIN fused_tensor_inputs AS i ON i.tensor_key = f.tensor_key;
COMMENT ON VIEW v_tensor_lineage IS
    'What each tensor of merged weights was made of: one row for each input.';
