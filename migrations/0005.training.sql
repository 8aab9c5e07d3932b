-- Training: sessions, metrics by series and step, checkpoints and all the state they resume from.
-- depends: 0003.models

CREATE TABLE training_definitions (
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,127}$'),
    id uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    model_id uuid NOT NULL REFERENCES models DEFERRABLE INITIALLY DEFERRED,
    total_epochs integer CHECK (total_epochs > 0),
    total_steps bigint CHECK (total_steps > 0),
    config jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object'),
    dataset jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(dataset) = 'object'),
    group_name text CHECK (group_name <> ''),
    notes text,
    best_metric text CHECK (best_metric ~ '^[^/]+/.+$'),
    best_mode text CHECK (best_mode IN ('min', 'max')),
    keep_last integer CHECK (keep_last > 0),
    keep_best integer CHECK (keep_best > 0),
    keep_every bigint CHECK (keep_every > 0),
    logging jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(logging) = 'object'),
    gradient_checkpointing jsonb CHECK (jsonb_typeof(gradient_checkpointing) = 'object'),
    description text,
    tags jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tags) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT training_definitions_metric_has_mode
        CHECK ((best_metric IS NULL) = (best_mode IS NULL)),
    CONSTRAINT training_definitions_best_needs_metric
        CHECK (keep_best IS NULL OR best_metric IS NOT NULL)
);
COMMENT ON TABLE training_definitions IS
    'Trainings that a manifest declares: what their sessions begin with, and what is kept of them.';
COMMENT ON COLUMN training_definitions.model_id IS
    'The model that is trained; it cannot be deleted while a training names it.';
COMMENT ON COLUMN training_definitions.config IS
    'What a session''s config has where the program gives nothing else.';
COMMENT ON COLUMN training_definitions.best_metric IS
    'Which metric says what checkpoint is the best, as scope/key.';
COMMENT ON COLUMN training_definitions.keep_last IS
    'How many of the latest checkpoints are kept. Where no keep_ column says anything, all are.';
COMMENT ON COLUMN training_definitions.keep_every IS
    'Checkpoints whose step is a multiple of this are kept.';
COMMENT ON COLUMN training_definitions.logging IS
    'How sessions send what they log; its defaults filled in.';
COMMENT ON COLUMN training_definitions.gradient_checkpointing IS
    'Which layers are computed again in the backward pass, and for what batch that is estimated.';

CREATE INDEX training_definitions_model_id_idx ON training_definitions (model_id);

CREATE TRIGGER training_definitions_touch BEFORE UPDATE ON training_definitions
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_touch_updated_at();

CREATE TABLE training_sessions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_name text,
    project text REFERENCES projects ON DELETE SET NULL,
    model_id uuid REFERENCES models ON DELETE SET NULL,
    model_name text NOT NULL,
    model_version text NOT NULL,
    status text NOT NULL DEFAULT 'running' CHECK (status IN
        ('running', 'paused', 'completed', 'failed', 'crashed')),
    total_epochs integer CHECK (total_epochs >= 0),
    current_epoch real NOT NULL DEFAULT 0 CHECK (current_epoch >= 0),
    total_steps bigint CHECK (total_steps >= 0),
    current_step bigint NOT NULL DEFAULT 0 CHECK (current_step >= 0),
    config jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object'),
    dataset jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(dataset) = 'object'),
    training_name text,
    parent_id uuid REFERENCES training_sessions ON DELETE SET NULL,
    forked_at_step bigint CHECK (forked_at_step >= 0),
    group_name text,
    tags jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tags) = 'object'),
    notes text,
    host text,
    pid integer CHECK (pid > 0),
    git_commit text,
    git_dirty boolean,
    error text,
    lease uuid NOT NULL DEFAULT gen_random_uuid(),
    started_at timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz CHECK (finished_at >= started_at),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT training_sessions_finished_has_time
        CHECK ((status IN ('running', 'paused')) = (finished_at IS NULL))
);
COMMENT ON TABLE training_sessions IS
    'One run of training a model, from its start over interruptions to its end.';
COMMENT ON COLUMN training_sessions.model_name IS
    'Name and version stay when the model is deleted.';
COMMENT ON COLUMN training_sessions.current_epoch IS
    'Epochs done, with the part of the one under way.';
COMMENT ON COLUMN training_sessions.dataset IS
    'What it trains on: name, digest, size, split.';
COMMENT ON COLUMN training_sessions.training_name IS
    'What the manifest declares of it under `training:`, by name; NULL where it declares nothing.';
COMMENT ON COLUMN training_sessions.pid IS
    'The process on that host: where it is gone, so is the session''s program.';
COMMENT ON COLUMN training_sessions.lease IS
    'Who writes it: each program that takes the session up draws a new one, and others write no more.';
COMMENT ON COLUMN training_sessions.parent_id IS
    'The session that this one went on from, at forked_at_step.';
COMMENT ON COLUMN training_sessions.heartbeat_at IS
    'The last sign of life. A running session that gave none for a minute counts as crashed.';

CREATE INDEX training_sessions_project_idx
    ON training_sessions (project) WHERE project IS NOT NULL;
CREATE INDEX training_sessions_model_id_idx ON training_sessions (model_id, started_at);
CREATE INDEX training_sessions_started_at_idx ON training_sessions (started_at);
CREATE INDEX training_sessions_session_name_idx
    ON training_sessions (session_name) WHERE session_name IS NOT NULL;
CREATE INDEX training_sessions_parent_id_idx
    ON training_sessions (parent_id) WHERE parent_id IS NOT NULL;

CREATE TRIGGER training_sessions_touch BEFORE UPDATE ON training_sessions
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_touch_updated_at();

CREATE TABLE training_series (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES training_sessions ON DELETE CASCADE,
    metric_key text NOT NULL CHECK (metric_key <> ''),
    scope text NOT NULL DEFAULT 'train' CHECK (scope <> ''),
    UNIQUE (session_id, metric_key, scope)
);
COMMENT ON TABLE training_series IS
    'The series of a session: one for each metric (loss) and scope (train, eval, system).';

CREATE TABLE training_metrics (
    series_id integer NOT NULL,
    epoch real,
    step bigint NOT NULL CHECK (step >= 0),
    value double precision NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (series_id, step)
);
COMMENT ON TABLE training_metrics IS
    'The points of the series. A step that is logged again, after a resume, replaces what was there.';
COMMENT ON COLUMN training_metrics.series_id IS
    'Its series. Triggers keep it right, once a statement: a foreign key would look at every point.';
COMMENT ON COLUMN training_metrics.epoch IS
    'Stands second, where alignment would leave four bytes empty.';
COMMENT ON COLUMN training_metrics.value IS
    'NaN and the infinities are kept.';

CREATE FUNCTION arc_halo_refuse_points_without_series() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    found bigint;
BEGIN
    -- Who deletes one of them waits until the points are in, and then deletes those too.
    PERFORM FROM training_series
    WHERE id IN (SELECT series_id FROM points) FOR KEY SHARE;
    GET DIAGNOSTICS found = ROW_COUNT;
    IF found < (SELECT count(DISTINCT series_id) FROM points) THEN
        RAISE EXCEPTION 'points of a series that is not there'
            USING ERRCODE = 'foreign_key_violation', TABLE = TG_TABLE_NAME;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION arc_halo_refuse_points_without_series() IS
    'Trigger: every point has its series, as with a foreign key.';

CREATE FUNCTION arc_halo_delete_points() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM training_metrics WHERE series_id IN (SELECT id FROM gone);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION arc_halo_delete_points() IS
    'Trigger: the points of a series go with it.';

CREATE TRIGGER training_metrics_have_series AFTER INSERT ON training_metrics
    REFERENCING NEW TABLE AS points
    FOR EACH STATEMENT EXECUTE FUNCTION arc_halo_refuse_points_without_series();
CREATE TRIGGER training_metrics_keep_series AFTER UPDATE ON training_metrics
    REFERENCING NEW TABLE AS points
    FOR EACH STATEMENT EXECUTE FUNCTION arc_halo_refuse_points_without_series();
CREATE TRIGGER training_series_delete_points AFTER DELETE ON training_series
    REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION arc_halo_delete_points();

CREATE TABLE model_checkpoints (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id uuid NOT NULL REFERENCES training_sessions ON DELETE CASCADE,
    step bigint NOT NULL CHECK (step >= 0),
    epoch real CHECK (epoch >= 0),
    checkpoint_type text NOT NULL CHECK (checkpoint_type IN
        ('full', 'weights_only', 'optimizer_only')),
    weight_set_id bigint REFERENCES weight_sets,
    root bytea CHECK (octet_length(root) = 32),
    state_set_id bigint REFERENCES weight_sets,
    training_state jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(training_state) = 'object'),
    metrics jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metrics) = 'object'),
    is_best boolean NOT NULL DEFAULT false,
    best_metric text,
    best_mode text CHECK (best_mode IN ('min', 'max')),
    is_pinned boolean NOT NULL DEFAULT false,
    kept_because text,
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (session_id, step, checkpoint_type),
    CONSTRAINT model_checkpoints_weights_fit_type
        CHECK ((checkpoint_type = 'optimizer_only') = (weight_set_id IS NULL)),
    CONSTRAINT model_checkpoints_root_fits_weights
        CHECK ((root IS NULL) = (weight_set_id IS NULL)),
    CONSTRAINT model_checkpoints_best_names_metric
        CHECK (NOT is_best OR (best_metric IS NOT NULL AND best_mode IS NOT NULL))
);
COMMENT ON TABLE model_checkpoints IS
    'Points that training can resume from. A row is inserted when all it names is stored, never before.';
COMMENT ON COLUMN model_checkpoints.weight_set_id IS
    'The weights, kept from collection while the checkpoint is there.';
COMMENT ON COLUMN model_checkpoints.state_set_id IS
    'The tensors of optimizer_state, by component and path, kept as the weights are.';
COMMENT ON COLUMN model_checkpoints.training_state IS
    'How the state is written (format), and the versions of the libraries that it came from.';
COMMENT ON COLUMN model_checkpoints.metrics IS
    'The metrics at this step; NaN and the infinities as text.';
COMMENT ON COLUMN model_checkpoints.best_metric IS
    'The metric, and in best_mode the direction, by which the session''s best is told.';
COMMENT ON COLUMN model_checkpoints.kept_because IS
    'The rules that keep it: latest, best, pinned, forked, keep_last, keep_best, keep_every.';
COMMENT ON COLUMN model_checkpoints.size_bytes IS
    'Raw bytes of weights and state, before encoding and sharing.';

CREATE UNIQUE INDEX model_checkpoints_one_best ON model_checkpoints (session_id) WHERE is_best;
CREATE TRIGGER model_checkpoints_weights_are_complete
    BEFORE INSERT OR UPDATE OF weight_set_id ON model_checkpoints
    FOR EACH ROW WHEN (NEW.weight_set_id IS NOT NULL)
    EXECUTE FUNCTION arc_halo_refuse_unfinished_weights();

CREATE INDEX model_checkpoints_weight_set_id_idx
    ON model_checkpoints (weight_set_id) WHERE weight_set_id IS NOT NULL;
CREATE INDEX model_checkpoints_state_set_id_idx
    ON model_checkpoints (state_set_id) WHERE state_set_id IS NOT NULL;

CREATE TABLE optimizer_state (
    checkpoint_id uuid NOT NULL REFERENCES model_checkpoints ON DELETE CASCADE,
    component text NOT NULL DEFAULT 'optimizer' CHECK (component IN
        ('model', 'optimizer', 'scheduler', 'scaler', 'rng', 'data', 'extra')),
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    path text NOT NULL,
    tensor_id bigint REFERENCES tensor_metadata,
    value jsonb,
    PRIMARY KEY (checkpoint_id, component, ordinal),
    CONSTRAINT optimizer_state_tensor_or_value CHECK (num_nonnulls(tensor_id, value) > 0)
);
COMMENT ON TABLE optimizer_state IS
    'A checkpoint''s state beside the weights, leaf by leaf: moments, steps, random generators.';
COMMENT ON COLUMN optimizer_state.ordinal IS
    'The order of the leaves in the state, by which it is put together again.';
COMMENT ON COLUMN optimizer_state.path IS
    'The keys that lead to the leaf, as JSON: integers stay integers.';
COMMENT ON COLUMN optimizer_state.value IS
    'A leaf that is no tensor, or a container and how many entries follow; of a tensor, what it is read as.';

CREATE INDEX optimizer_state_tensor_id_idx
    ON optimizer_state (tensor_id) WHERE tensor_id IS NOT NULL;

CREATE TABLE gradient_checkpoints (
    session_id uuid NOT NULL REFERENCES training_sessions ON DELETE CASCADE,
    layer_index integer NOT NULL CHECK (layer_index >= 0),
    module_name text NOT NULL,
    is_checkpointed boolean NOT NULL,
    activation_bytes bigint CHECK (activation_bytes >= 0),
    saved_bytes bigint CHECK (saved_bytes BETWEEN 0 AND activation_bytes),
    PRIMARY KEY (session_id, layer_index)
);
COMMENT ON TABLE gradient_checkpoints IS
    'Which layers a session computes again in the backward pass instead of keeping their activations.';
COMMENT ON COLUMN gradient_checkpoints.activation_bytes IS
    'Estimated activations of the layer when they are kept.';
COMMENT ON COLUMN gradient_checkpoints.saved_bytes IS
    'Estimated bytes of them that the plan saves.';

CREATE FUNCTION get_latest_checkpoint(uuid) RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (
    SELECT c.id
    FROM model_checkpoints AS c
    WHERE c.session_id = $1
    ORDER BY c.step DESC, c.created_at DESC, c.id
    LIMIT 1
);
COMMENT ON FUNCTION get_latest_checkpoint(uuid) IS
    'The checkpoint of a training session with the highest step, NULL when there is none.';

CREATE VIEW v_training_progress AS
SELECT
    s.id AS session_id,
    s.session_name,
    s.model_name,
    s.model_version,
    s.group_name,
    s.training_name,
    CASE
        WHEN s.status = 'running' AND s.heartbeat_at < now() - interval '1 minute' THEN 'crashed'
        ELSE s.status
    END AS status,
    s.current_epoch,
    s.total_epochs,
    s.current_step,
    s.total_steps,
    CASE
        WHEN s.status = 'completed' THEN 1.0
        WHEN s.total_steps > 0
            THEN least(1.0, s.current_step / s.total_steps::double precision)
        WHEN s.total_epochs > 0
            THEN least(1.0, s.current_epoch / s.total_epochs::double precision)
    END AS progress,
    m.series_count,
    l.step AS last_loss_step,
    l.value AS last_loss,
    c.checkpoint_count,
    get_latest_checkpoint(s.id) AS latest_checkpoint_id,
    b.id AS best_checkpoint_id,
    b.best_metric,
    extract(epoch FROM coalesce(s.finished_at, s.heartbeat_at) - s.started_at)::double precision
        AS elapsed_seconds,
    s.started_at,
    s.heartbeat_at,
    s.finished_at
FROM training_sessions AS s
LEFT JOIN model_checkpoints AS b ON b.session_id = s.id AND b.is_best
CROSS JOIN LATERAL (
    SELECT count(*) AS series_count FROM training_series AS x WHERE x.session_id = s.id
) AS m
CROSS JOIN LATERAL (
    SELECT count(*) AS checkpoint_count FROM model_checkpoints AS x WHERE x.session_id = s.id
) AS c
LEFT JOIN training_series AS t
    ON t.session_id = s.id AND t.metric_key = 'loss' AND t.scope = 'train'
LEFT JOIN LATERAL (
    -- Of one series, so that the primary key has its end: joined in here, all would be sorted.
    SELECT y.step, y.value FROM training_metrics AS y
    WHERE y.series_id = t.id
    ORDER BY y.step DESC
    LIMIT 1
) AS l ON true;
COMMENT ON VIEW v_training_progress IS
    'One row for each training session: how far it is, its last loss, and its checkpoints.';
