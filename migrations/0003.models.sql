-- The registry: models, their versions and aliases, their layers, heads, weights and embeddings.
-- depends: 0002.tensors

CREATE TABLE tokenizers (
    digest bytea PRIMARY KEY,
    document bytea NOT NULL,
    token_count integer NOT NULL CHECK (token_count > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tokenizers_digest_is_of_document CHECK (digest = sha256(document))
);
COMMENT ON TABLE tokenizers IS
    'Tokenizers: each document once, whatever models have it.';
COMMENT ON COLUMN tokenizers.digest IS
    'SHA-256 of the document.';
COMMENT ON COLUMN tokenizers.document IS
    'The tokenizer.json, byte by byte as it was read or as a merge came to it.';
COMMENT ON COLUMN tokenizers.token_count IS
    'Tokens, those that were added included.';

CREATE TABLE models (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    model_name text NOT NULL CHECK (model_name ~ '^[a-z0-9][a-z0-9._-]{0,127}$'),
    version text NOT NULL CHECK (version ~ '^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$'),
    model_type text NOT NULL CHECK (model_type IN
        ('transformer', 'cnn', 'rnn', 'lstm', 'gru', 'gan', 'vae', 'diffusion', 'moe', 'ssm',
         'hybrid', 'embedding', 'classifier', 'other')),
    architecture_config jsonb NOT NULL CHECK (jsonb_typeof(architecture_config) = 'object'),
    architecture_family text,
    description text,
    tags jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tags) = 'object'),
    weight_set_id bigint REFERENCES weight_sets,
    weights_metadata jsonb CHECK (jsonb_typeof(weights_metadata) = 'object'),
    weights_source jsonb CHECK (jsonb_typeof(weights_source) = 'object'),
    tokenizer_digest bytea REFERENCES tokenizers,
    tokenizer_source text,
    parameter_count bigint CHECK (parameter_count >= 0),
    runner jsonb CHECK (jsonb_typeof(runner) = 'object'),
    status text NOT NULL DEFAULT 'registered' CHECK (status IN
        ('registered', 'importing', 'fusing', 'ready', 'failed')),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (model_name, version),
    CONSTRAINT models_ready_has_weights CHECK (status <> 'ready' OR weight_set_id IS NOT NULL)
);
COMMENT ON TABLE models IS
    'The registry: one row for each version of a model.';
COMMENT ON COLUMN models.architecture_config IS
    'The model''s config as its library writes it; an open mapping.';
COMMENT ON COLUMN models.architecture_family IS
    'The family that layers and weight names were derived by (llama, gpt2, bert); NULL where unknown.';
COMMENT ON COLUMN models.weight_set_id IS
    'The weights; only apply moves this pointer, and every root it had stays in model_weight_history.';
COMMENT ON COLUMN models.weights_metadata IS
    'The metadata of the weight file (__metadata__ of safetensors).';
COMMENT ON COLUMN models.weights_source IS
    'Where the weights were imported from: source, format and digest.';
COMMENT ON COLUMN models.tokenizer_digest IS
    'The tokenizer whose tokens the rows of its embedding stand for; NULL where nobody knows it.';
COMMENT ON COLUMN models.tokenizer_source IS
    'The file the tokenizer was read from; NULL for a merged model.';
COMMENT ON COLUMN models.runner IS
    'Names the runner that answers for this model, and its params; never code, never a secret.';
COMMENT ON COLUMN models.status IS
    'registered has no weights; importing and fusing are not to be loaded; ready has its weights.';

CREATE INDEX models_weight_set_id_idx ON models (weight_set_id);
CREATE INDEX models_tokenizer_digest_idx
    ON models (tokenizer_digest) WHERE tokenizer_digest IS NOT NULL;

CREATE TRIGGER models_touch BEFORE UPDATE ON models
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_touch_updated_at();

CREATE TRIGGER models_weights_are_complete BEFORE INSERT OR UPDATE OF weight_set_id ON models
    FOR EACH ROW WHEN (NEW.weight_set_id IS NOT NULL)
    EXECUTE FUNCTION arc_halo_refuse_unfinished_weights();

CREATE TABLE model_aliases (
    model_name text NOT NULL,
    alias text NOT NULL CHECK (alias ~ '^[a-z0-9][a-z0-9._-]{0,127}$'),
    model_id uuid NOT NULL REFERENCES models ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    PRIMARY KEY (model_name, alias)
);
COMMENT ON TABLE model_aliases IS
    'The version that an alias of a model stands for now: name:alias.';

CREATE INDEX model_aliases_model_id_idx ON model_aliases (model_id);

CREATE TABLE model_alias_history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_name text NOT NULL,
    alias text NOT NULL,
    version text NOT NULL,
    model_id uuid REFERENCES models ON DELETE SET NULL,
    assigned_at timestamptz NOT NULL DEFAULT now(),
    released_at timestamptz CHECK (released_at >= assigned_at)
);
COMMENT ON TABLE model_alias_history IS
    'Every version that an alias ever stood for, and from when to when.';
COMMENT ON COLUMN model_alias_history.model_id IS
    'NULL once that version was deleted; its name and version stay.';
COMMENT ON COLUMN model_alias_history.released_at IS
    'NULL while the alias stands for this version.';

CREATE INDEX model_alias_history_alias_idx
    ON model_alias_history (model_name, alias, assigned_at);
CREATE UNIQUE INDEX model_alias_history_one_current
    ON model_alias_history (model_name, alias) WHERE released_at IS NULL;
CREATE INDEX model_alias_history_model_id_idx ON model_alias_history (model_id);

CREATE TABLE model_weight_history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id uuid NOT NULL REFERENCES models ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    weight_set_id bigint REFERENCES weight_sets,
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    project text,
    revision bigint CHECK (revision > 0),
    assigned_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE model_weight_history IS
    'Every weight set that a model ever pointed to.';
COMMENT ON COLUMN model_weight_history.weight_set_id IS
    'Keeps the set from collection; set to NULL when retention lets it go, and the root still names it.';
COMMENT ON COLUMN model_weight_history.revision IS
    'The revision of the project that moved the pointer; NULL when it was no apply.';

CREATE TRIGGER model_weight_history_weights_are_complete
    BEFORE INSERT OR UPDATE OF weight_set_id ON model_weight_history
    FOR EACH ROW WHEN (NEW.weight_set_id IS NOT NULL)
    EXECUTE FUNCTION arc_halo_refuse_unfinished_weights();

CREATE INDEX model_weight_history_model_id_idx ON model_weight_history (model_id, id);
CREATE INDEX model_weight_history_weight_set_id_idx ON model_weight_history (weight_set_id);

CREATE TABLE transformer_layers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id uuid NOT NULL REFERENCES models ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    layer_index integer NOT NULL CHECK (layer_index >= 0),
    layer_type text NOT NULL CHECK (layer_type IN
        ('encoder', 'decoder', 'cross_decoder', 'attention', 'feed_forward', 'moe', 'ssm',
         'recurrent', 'convolution', 'embedding', 'normalization', 'output', 'other')),
    hidden_size integer CHECK (hidden_size > 0),
    intermediate_size integer CHECK (intermediate_size > 0),
    num_heads integer CHECK (num_heads > 0),
    num_kv_heads integer CHECK (num_kv_heads > 0),
    head_dim integer CHECK (head_dim > 0),
    activation text,
    normalization text,
    position_encoding text,
    config jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object'),
    UNIQUE (model_id, layer_index)
);
COMMENT ON TABLE transformer_layers IS
    'The layers of a model, derived from its architecture.';
COMMENT ON COLUMN transformer_layers.layer_index IS
    'Counts from 0 through the whole model; the layers of a decoder follow those of its encoder.';
COMMENT ON COLUMN transformer_layers.num_kv_heads IS
    'Fewer than num_heads where queries share keys and values.';
COMMENT ON COLUMN transformer_layers.config IS
    'What is known of this layer beyond the columns (window, experts, theta).';

CREATE TABLE attention_heads (
    layer_id bigint NOT NULL REFERENCES transformer_layers ON DELETE CASCADE,
    head_index integer NOT NULL CHECK (head_index >= 0),
    head_type text NOT NULL DEFAULT 'self' CHECK (head_type IN
        ('self', 'causal', 'sliding_window', 'cross', 'linear', 'other')),
    head_dim integer NOT NULL CHECK (head_dim > 0),
    kv_head_index integer NOT NULL CHECK (kv_head_index >= 0),
    PRIMARY KEY (layer_id, head_index)
);
COMMENT ON TABLE attention_heads IS
    'The query heads of a layer.';
COMMENT ON COLUMN attention_heads.kv_head_index IS
    'The key and value head that this head reads; its own index where none are shared.';

CREATE TABLE model_weights (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id uuid NOT NULL REFERENCES models ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    tensor_name text NOT NULL,
    tensor_id bigint NOT NULL REFERENCES tensor_metadata,
    layer_id bigint REFERENCES transformer_layers ON DELETE SET NULL,
    weight_type text CHECK (weight_type ~ '^[a-z][a-z0-9_]*$'),
    requires_grad boolean NOT NULL DEFAULT true,
    gradient_tensor_id bigint REFERENCES tensor_metadata,
    gradient_norm double precision CHECK (gradient_norm >= 0),
    UNIQUE (model_id, tensor_name)
);
COMMENT ON TABLE model_weights IS
    'The tensors of a model''s current weights, each with its place and part in the model.';
COMMENT ON COLUMN model_weights.weight_type IS
    'The part it plays (q_proj, embedding, norm, lm_head, other); NULL where the family is unknown.';
COMMENT ON COLUMN model_weights.gradient_tensor_id IS
    'The gradient that a training session recorded last, where it was asked to.';

CREATE INDEX model_weights_tensor_id_idx ON model_weights (tensor_id);
CREATE INDEX model_weights_layer_id_idx
    ON model_weights (layer_id) WHERE layer_id IS NOT NULL;
CREATE INDEX model_weights_gradient_tensor_id_idx
    ON model_weights (gradient_tensor_id) WHERE gradient_tensor_id IS NOT NULL;

CREATE TABLE embeddings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id uuid NOT NULL REFERENCES models ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    embedding_type text NOT NULL CHECK (embedding_type IN ('token', 'position', 'segment')),
    num_embeddings bigint NOT NULL CHECK (num_embeddings > 0),
    dimension integer NOT NULL CHECK (dimension > 0),
    tensor_id bigint REFERENCES tensor_metadata,
    UNIQUE (model_id, embedding_type)
);
COMMENT ON TABLE embeddings IS
    'The embedding matrices of a model.';
COMMENT ON COLUMN embeddings.num_embeddings IS
    'Rows of the matrix: the vocabulary of a token embedding, the positions of a position embedding.';
COMMENT ON COLUMN embeddings.tensor_id IS
    'NULL for a model without weights.';

CREATE INDEX embeddings_tensor_id_idx ON embeddings (tensor_id) WHERE tensor_id IS NOT NULL;

CREATE TABLE embedding_indexes (
    tensor_id bigint PRIMARY KEY REFERENCES tensor_metadata ON DELETE CASCADE,
    row_count bigint NOT NULL DEFAULT 0 CHECK (row_count >= 0),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE embedding_indexes IS
    'Matrices that pgvector has an index of. The vectors of tensor n are in embedding_vectors_n.';
COMMENT ON COLUMN embedding_indexes.tensor_id IS
    'The matrix. The index is derived from it, does not keep it, and is dropped with it.';
COMMENT ON COLUMN embedding_indexes.row_count IS
    'Rows indexed: those that have a direction.';

CREATE FUNCTION arc_halo_drop_vectors() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Made at run time, since their type is of an extension that a server need not have.
    EXECUTE format('DROP TABLE IF EXISTS embedding_vectors_%s', OLD.tensor_id);
    RETURN OLD;
END
$$;
COMMENT ON FUNCTION arc_halo_drop_vectors() IS
    'Trigger: drops the table of vectors that belongs to a deleted row of embedding_indexes.';

-- Before, since a cascade has the owner's rights, and triggers after it had them from version 18 on.
CREATE TRIGGER embedding_indexes_drop_vectors BEFORE DELETE ON embedding_indexes
    FOR EACH ROW EXECUTE FUNCTION arc_halo_drop_vectors();

CREATE FUNCTION calculate_model_parameters(uuid) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (
    SELECT (
        SELECT coalesce(sum(t.element_count), 0)::bigint
        FROM model_weights AS w JOIN tensor_metadata AS t ON t.id = w.tensor_id
        WHERE w.model_id = m.id
    )
    FROM models AS m
    WHERE m.id = $1
);
COMMENT ON FUNCTION calculate_model_parameters(uuid) IS
    'Elements of all tensors of a model: 0 without weights, NULL for an id that is no model.';

CREATE VIEW v_model_architecture AS
SELECT
    m.id AS model_id,
    m.model_name,
    m.version,
    m.model_type,
    m.architecture_family,
    m.status,
    m.parameter_count,
    s.tensor_count,
    s.size_bytes,
    s.root,
    l.layer_count,
    h.head_count,
    l.hidden_size,
    l.intermediate_size,
    l.num_heads,
    l.num_kv_heads,
    l.head_dim,
    e.num_embeddings AS vocabulary_size,
    a.aliases,
    m.architecture_config,
    m.created_at,
    m.updated_at
FROM models AS m
LEFT JOIN weight_sets AS s ON s.id = m.weight_set_id
LEFT JOIN embeddings AS e ON e.model_id = m.id AND e.embedding_type = 'token'
CROSS JOIN LATERAL (
    SELECT
        count(*) AS layer_count,
        max(x.hidden_size) AS hidden_size,
        max(x.intermediate_size) AS intermediate_size,
        max(x.num_heads) AS num_heads,
        max(x.num_kv_heads) AS num_kv_heads,
        max(x.head_dim) AS head_dim
    FROM transformer_layers AS x
    WHERE x.model_id = m.id
) AS l
CROSS JOIN LATERAL (
    SELECT count(*) AS head_count
    FROM transformer_layers AS x JOIN attention_heads AS y ON y.layer_id = x.id
    WHERE x.model_id = m.id
) AS h
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(x.alias ORDER BY x.alias), '{}') AS aliases
    FROM model_aliases AS x
    WHERE x.model_id = m.id
) AS a;
COMMENT ON VIEW v_model_architecture IS
    'One row for each model: its shape, weights and aliases. Layer sizes are the largest of its layers.';
