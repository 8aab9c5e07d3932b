-- Projects own resources; each apply of a project is one revision with every change in it.

CREATE FUNCTION arc_halo_touch_updated_at() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION arc_halo_touch_updated_at() IS
    'Trigger: sets updated_at to the time of the transaction that changes a row.';

CREATE FUNCTION arc_halo_refuse_update() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % never change', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', HINT = 'insert a new row, or delete this one';
END
$$;
COMMENT ON FUNCTION arc_halo_refuse_update() IS
    'Trigger: keeps the rows of an immutable table as they were inserted.';

CREATE TABLE projects (
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,127}$'),
    id uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    head_revision bigint NOT NULL DEFAULT 0 CHECK (head_revision >= 0),
    manifest_digest bytea CHECK (octet_length(manifest_digest) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE projects IS
    'One row for each manifest that was ever applied: the owner of its resources.';
COMMENT ON COLUMN projects.head_revision IS
    'The revision of the last apply; 0 before the first. A plan made on another one is stale.';
COMMENT ON COLUMN projects.manifest_digest IS
    'SHA-256 of the manifest that was applied last.';

CREATE TRIGGER projects_touch BEFORE UPDATE ON projects
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_touch_updated_at();

CREATE TABLE managed_resources (
    kind text NOT NULL CHECK (kind IN
        ('model', 'strategy', 'reactor', 'training', 'inference', 'storage', 'settings')),
    name text NOT NULL CHECK (name <> ''),
    project text NOT NULL REFERENCES projects,
    resource_id uuid,
    spec jsonb NOT NULL CHECK (jsonb_typeof(spec) = 'object'),
    spec_digest bytea NOT NULL CHECK (octet_length(spec_digest) = 32),
    live_digest text NOT NULL,
    protected boolean NOT NULL DEFAULT false,
    deletion text NOT NULL DEFAULT 'delete' CHECK (deletion IN ('delete', 'orphan')),
    ignored text[] NOT NULL DEFAULT '{}',
    tags jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tags) = 'object'),
    source_file text,
    source_line integer CHECK (source_line > 0),
    created_revision bigint NOT NULL CHECK (created_revision > 0),
    updated_revision bigint NOT NULL CHECK (updated_revision > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, name)
);
COMMENT ON TABLE managed_resources IS
    'What manifests declare, as last applied. A resource has one owner; names are unique in a database.';
COMMENT ON COLUMN managed_resources.name IS
    'The name as an address has it: a model''s is name@version.';
COMMENT ON COLUMN managed_resources.resource_id IS
    'The id of the typed row (models, cognitive_fusion_reactors, fusion_strategies), where there is one.';
COMMENT ON COLUMN managed_resources.spec IS
    'The resolved document that was applied last.';
COMMENT ON COLUMN managed_resources.spec_digest IS
    'SHA-256 of spec in canonical JSON.';
COMMENT ON COLUMN managed_resources.live_digest IS
    'Digest of the typed rows, computed in SQL right after they were applied: another one now is drift.';
COMMENT ON COLUMN managed_resources.protected IS
    'No apply may delete or replace the resource, even when its block left the manifest.';
COMMENT ON COLUMN managed_resources.deletion IS
    'What a deletion does: delete removes the typed rows, orphan only lets go of them.';
COMMENT ON COLUMN managed_resources.ignored IS
    'Fields that something else may change: no drift.';
COMMENT ON COLUMN managed_resources.created_revision IS
    'A revision of the owner at that time; no foreign key, since history may be cut.';

CREATE INDEX managed_resources_project_idx ON managed_resources (project);

CREATE TRIGGER managed_resources_touch BEFORE UPDATE ON managed_resources
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_touch_updated_at();

CREATE TABLE revisions (
    project text NOT NULL REFERENCES projects,
    revision bigint NOT NULL CHECK (revision > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    host text NOT NULL,
    tool_version text NOT NULL,
    git_commit text,
    git_dirty boolean,
    manifest_digest bytea NOT NULL CHECK (octet_length(manifest_digest) = 32),
    plan_digest bytea NOT NULL CHECK (octet_length(plan_digest) = 32),
    summary jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(summary) = 'object'),
    database_role text NOT NULL DEFAULT current_user,
    run_url text,
    environment text,
    is_partial boolean NOT NULL DEFAULT false,
    rolled_back_to bigint CHECK (rolled_back_to >= 0 AND rolled_back_to < revision),
    PRIMARY KEY (project, revision),
    UNIQUE (project, plan_digest)
);
COMMENT ON TABLE revisions IS
    'Each apply that changed something: who, when, from which commit. Written in the same transaction.';
COMMENT ON COLUMN revisions.plan_digest IS
    'SHA-256 of the plan, its base revision included, so that a plan is applied at most once.';
COMMENT ON COLUMN revisions.summary IS
    'Counts of the changes by action, bytes and seconds.';
COMMENT ON COLUMN revisions.actor IS
    'Who: the login name, or what the CI system calls the person.';
COMMENT ON COLUMN revisions.run_url IS
    'The page of the CI run that applied it, where there is one.';
COMMENT ON COLUMN revisions.environment IS
    'The name of the overlay it was applied with; NULL without one.';
COMMENT ON COLUMN revisions.is_partial IS
    'Whether some of the manifest was left out, by --target or --exclude.';
COMMENT ON COLUMN revisions.rolled_back_to IS
    'The revision whose state this one restored; NULL unless it is a rollback.';

CREATE TRIGGER revisions_immutable BEFORE UPDATE ON revisions
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_refuse_update();

CREATE TABLE revision_changes (
    project text NOT NULL,
    revision bigint NOT NULL,
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    action text NOT NULL CHECK (action IN
        ('create', 'update', 'replace', 'delete', 'rename', 'adopt', 'forget')),
    kind text NOT NULL,
    name text NOT NULL,
    old_name text,
    before jsonb,
    after jsonb,
    protected boolean NOT NULL DEFAULT false,
    deletion text NOT NULL DEFAULT 'delete' CHECK (deletion IN ('delete', 'orphan')),
    PRIMARY KEY (project, revision, ordinal),
    FOREIGN KEY (project, revision) REFERENCES revisions ON DELETE CASCADE
);
COMMENT ON TABLE revision_changes IS
    'The changes of a revision in the order they were made, each with the document before and after.';
COMMENT ON COLUMN revision_changes.before IS 'NULL for what was created.';
COMMENT ON COLUMN revision_changes.after IS 'NULL for what was deleted or forgotten.';
COMMENT ON COLUMN revision_changes.old_name IS 'The name before, of what was renamed.';
COMMENT ON COLUMN revision_changes.protected IS
    'Whether the resource is protected after the change.';
COMMENT ON COLUMN revision_changes.deletion IS
    'What a later deletion does; see managed_resources.';

CREATE INDEX revision_changes_resource_idx ON revision_changes (kind, name);

CREATE TRIGGER revision_changes_immutable BEFORE UPDATE ON revision_changes
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION arc_halo_refuse_update();
