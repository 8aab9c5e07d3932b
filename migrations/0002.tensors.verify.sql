-- What the tensor store relies on beyond the shape of its tables. What is inserted here is undone.

DO $$
BEGIN
    ASSERT (SELECT attstorage = 'e' FROM pg_attribute
            WHERE attrelid = 'chunk_bodies'::regclass AND attname = 'body'),
        'bodies, which are encoded already, would be compressed once more';
END
$$;

-- What is named by its digest never changes.
DO $$
BEGIN
    -- No number of the sequence: what is drawn from it is not undone.
    INSERT INTO tensor_metadata
        (id, digest, dtype, shape, element_count, size_bytes, chunk_bytes, chunk_count)
    OVERRIDING SYSTEM VALUE
    VALUES (0, sha256('verify'), 'U8', '{1}', 1, 1, 262144, 1);
    UPDATE tensor_metadata SET dtype = 'I8' WHERE digest = sha256('verify');
    ASSERT false, 'a tensor was changed after it was stored';
EXCEPTION WHEN restrict_violation THEN
    NULL;
END
$$;

-- Reading a chunk never takes more than two.
DO $$
BEGIN
    INSERT INTO chunk_bodies
        (digest, raw_bytes, stored_bytes, codec, codec_version, base_digest, body)
    VALUES (sha256('verify 0'), 1, 1, 'raw', 1, NULL, 'x'),
           (sha256('verify 1'), 1, 1, 'delta', 1, sha256('verify 0'), 'x'),
           (sha256('verify 2'), 1, 1, 'delta', 1, sha256('verify 1'), 'x');
    ASSERT false, 'a delta was taken against a delta';
EXCEPTION WHEN restrict_violation THEN
    NULL;
END
$$;
