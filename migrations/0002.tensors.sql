-- Tensors, stored once whatever names them: chunks, tensors, weight sets, and the builds that fill them.
-- depends: 0001.projects

CREATE TABLE body_stores (
    id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind <> ''),
    url text NOT NULL UNIQUE CHECK (url <> ''),
    marker uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    holder text,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE body_stores IS
    'Places outside of the database that hold bodies of chunks: buckets and directories.';
COMMENT ON COLUMN body_stores.kind IS
    'The plugin that opens it.';
COMMENT ON COLUMN body_stores.url IS
    'Where it is; never a secret. A program opens it only if its own project names it.';
COMMENT ON COLUMN body_stores.marker IS
    'Stands in the store too, so that no two databases collect from one another''s.';

COMMENT ON COLUMN body_stores.holder IS
    'Which database it is that uses the store: a copy of that one is refused, and so deletes nothing there.';

CREATE TABLE chunk_bodies (
    digest bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    raw_bytes integer NOT NULL CHECK (raw_bytes BETWEEN 1 AND 1048576),
    stored_bytes integer NOT NULL CHECK (stored_bytes >= 0),
    codec text NOT NULL CHECK (codec <> ''),
    codec_version integer NOT NULL CHECK (codec_version > 0),
    base_digest bytea REFERENCES chunk_bodies CHECK (base_digest <> digest),
    store_id smallint REFERENCES body_stores,
    seen_at timestamptz NOT NULL DEFAULT now(),
    body bytea,
    CONSTRAINT chunk_bodies_body_is_in_one_place CHECK ((body IS NULL) = (store_id IS NOT NULL)),
    CONSTRAINT chunk_bodies_stored_bytes_are_the_body_s CHECK (octet_length(body) = stored_bytes)
) WITH (toast_tuple_target = 8160);
COMMENT ON TABLE chunk_bodies IS
    'The bytes of chunks, named by the SHA-256 of the raw bytes; any number of tensors share a chunk.';
COMMENT ON COLUMN chunk_bodies.raw_bytes IS
    'Length before encoding, at most 1 MiB.';
COMMENT ON COLUMN chunk_bodies.stored_bytes IS
    'Length of the body, wherever it is.';
COMMENT ON COLUMN chunk_bodies.codec IS
    'The codec that wrote the body; the digest is the same whichever it was.';
COMMENT ON COLUMN chunk_bodies.base_digest IS
    'The chunk that a delta was taken against; it is kept as long as the delta, and is none itself.';
COMMENT ON COLUMN chunk_bodies.store_id IS
    'Where the body is; NULL when it is here.';
COMMENT ON COLUMN chunk_bodies.seen_at IS
    'When a build last wrote the chunk or found it there: collection leaves younger ones alone.';
COMMENT ON COLUMN chunk_bodies.body IS
    'NULL when the body is in a body store.';

-- Bodies are random or already encoded: letting pglz try costs much and gains nothing.
ALTER TABLE chunk_bodies ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE INDEX chunk_bodies_base_digest_idx ON chunk_bodies (base_digest)
    WHERE base_digest IS NOT NULL;
CREATE INDEX chunk_bodies_store_id_idx ON chunk_bodies (store_id) WHERE store_id IS NOT NULL;

CREATE FUNCTION arc_halo_refuse_deep_delta() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The lock keeps the base as it is until this transaction ends.
    PERFORM FROM chunk_bodies WHERE digest = NEW.base_digest AND base_digest IS NULL FOR SHARE;
    IF NOT FOUND OR EXISTS (SELECT FROM chunk_bodies WHERE base_digest = NEW.digest) THEN
        RAISE EXCEPTION 'a delta is taken against a chunk that is none'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION arc_halo_refuse_deep_delta() IS
    'Trigger: keeps deltas one deep, so that reading a chunk never takes more than two.';

CREATE TRIGGER chunk_bodies_one_deep BEFORE INSERT OR UPDATE OF base_digest ON chunk_bodies
    FOR EACH ROW WHEN (NEW.base_digest IS NOT NULL)
    EXECUTE FUNCTION arc_halo_refuse_deep_delta();

CREATE TABLE tensor_metadata (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    dtype text NOT NULL CHECK (dtype ~ '^[A-Z][A-Z0-9_]*$'),
    shape bigint[] NOT NULL CHECK (array_position(shape, NULL) IS NULL),
    element_count bigint NOT NULL CHECK (element_count >= 0),
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    chunk_bytes integer NOT NULL CHECK (chunk_bytes BETWEEN 1 AND 1048576),
    chunk_count integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tensor_metadata_chunks_cover_it
        CHECK (chunk_count = (size_bytes + chunk_bytes - 1) / chunk_bytes)
);
COMMENT ON TABLE tensor_metadata IS
    'Tensors, immutable and without names: equal tensors of any models are one row.';
COMMENT ON COLUMN tensor_metadata.digest IS
    'SHA-256 over dtype, shape and raw bytes: the same in any chunking and codec.';
COMMENT ON COLUMN tensor_metadata.dtype IS
    'The safetensors name: F32, BF16, I8, BOOL.';
COMMENT ON COLUMN tensor_metadata.shape IS
    'The empty array is a 0-dimensional tensor, which has one element.';
COMMENT ON COLUMN tensor_metadata.chunk_bytes IS
    'Raw length of each chunk but the last.';

CREATE TRIGGER tensor_metadata_immutable BEFORE UPDATE ON tensor_metadata
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_refuse_update();

CREATE TABLE tensor_data (
    tensor_id bigint NOT NULL REFERENCES tensor_metadata ON DELETE CASCADE,
    chunk_index integer NOT NULL CHECK (chunk_index >= 0),
    chunk_digest bytea NOT NULL REFERENCES chunk_bodies,
    PRIMARY KEY (tensor_id, chunk_index)
);
COMMENT ON TABLE tensor_data IS
    'Which chunks a tensor consists of, in order; chunk n starts at byte n * chunk_bytes.';

CREATE INDEX tensor_data_chunk_digest_idx ON tensor_data (chunk_digest);

CREATE TABLE weight_sets (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    root bytea UNIQUE CHECK (octet_length(root) = 32),
    tensor_count integer CHECK (tensor_count >= 0),
    parameter_count bigint CHECK (parameter_count >= 0),
    size_bytes bigint CHECK (size_bytes >= 0),
    completed_at timestamptz DEFAULT now(),
    CONSTRAINT weight_sets_complete_or_in_the_making CHECK
        (num_nulls(root, tensor_count, parameter_count, size_bytes, completed_at) IN (0, 5))
);
COMMENT ON TABLE weight_sets IS
    'Sets of named tensors: what a model''s or a checkpoint''s weights are. A build fills one; complete, it never changes.';
COMMENT ON COLUMN weight_sets.root IS
    'Merkle root over the names and digests of the tensors: same weights, same root. NULL while a build fills the set.';
COMMENT ON COLUMN weight_sets.parameter_count IS
    'Elements of all tensors; a tensor that stands under two names counts twice.';
COMMENT ON COLUMN weight_sets.size_bytes IS
    'Raw bytes of all tensors, before encoding and sharing.';

CREATE TRIGGER weight_sets_immutable BEFORE UPDATE ON weight_sets
    FOR EACH ROW WHEN (OLD.root IS NOT NULL AND OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_refuse_update();

CREATE FUNCTION arc_halo_refuse_unfinished_weights() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A root, once there, stays: what is found complete cannot become incomplete.
    IF EXISTS (SELECT FROM weight_sets WHERE id = NEW.weight_set_id AND root IS NULL) THEN
        RAISE EXCEPTION 'the weight set % is still being built', NEW.weight_set_id
            USING ERRCODE = 'foreign_key_violation', TABLE = TG_TABLE_NAME;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION arc_halo_refuse_unfinished_weights() IS
    'Trigger: lets nothing but its build point to a weight set that is still being filled.';

CREATE TABLE weight_set_tensors (
    weight_set_id bigint NOT NULL REFERENCES weight_sets ON DELETE CASCADE,
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    tensor_name text NOT NULL,
    tensor_id bigint NOT NULL REFERENCES tensor_metadata,
    PRIMARY KEY (weight_set_id, tensor_name),
    UNIQUE (weight_set_id, ordinal)
);
COMMENT ON TABLE weight_set_tensors IS
    'The tensors of a weight set by name.';
COMMENT ON COLUMN weight_set_tensors.ordinal IS
    'The order of storage in the file the weights came from; no part of the root.';

CREATE INDEX weight_set_tensors_tensor_id_idx ON weight_set_tensors (tensor_id);

CREATE TRIGGER weight_set_tensors_immutable BEFORE UPDATE ON weight_set_tensors
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_refuse_update();

CREATE TABLE weight_builds (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project text REFERENCES projects ON DELETE SET NULL,
    purpose text NOT NULL CHECK (purpose IN ('import', 'fuse', 'checkpoint', 'write')),
    recipe_key bytea NOT NULL UNIQUE CHECK (octet_length(recipe_key) = 32),
    recipe jsonb NOT NULL CHECK (jsonb_typeof(recipe) = 'object'),
    status text NOT NULL DEFAULT 'building' CHECK (status IN ('building', 'complete', 'failed')),
    weight_set_id bigint NOT NULL REFERENCES weight_sets ON DELETE CASCADE,
    error text,
    cpu_seconds double precision CHECK (cpu_seconds >= 0),
    started_at timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CONSTRAINT weight_builds_finished_has_time
        CHECK ((status = 'building') = (finished_at IS NULL))
);
COMMENT ON TABLE weight_builds IS
    'Weight sets in the making. Each tensor commits by itself, so that a killed build goes on where it was.';
COMMENT ON COLUMN weight_builds.recipe_key IS
    'SHA-256 of all that decides the result (source digest, or strategy, version, params and input roots).';
COMMENT ON COLUMN weight_builds.weight_set_id IS
    'The set it fills, its own until it is complete. A complete build remembers its set but does not keep it: it goes when the set is collected.';
COMMENT ON COLUMN weight_builds.heartbeat_at IS
    'A build is alive, and its tensors safe from collection, while this is recent.';

CREATE INDEX weight_builds_project_idx ON weight_builds (project);
CREATE INDEX weight_builds_weight_set_id_idx ON weight_builds (weight_set_id);
CREATE UNIQUE INDEX weight_builds_fill_sets_of_their_own ON weight_builds (weight_set_id)
    WHERE status <> 'complete';
