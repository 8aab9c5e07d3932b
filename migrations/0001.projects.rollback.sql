DROP TABLE revision_changes;
DROP TABLE revisions;
DROP TABLE managed_resources;
DROP TABLE projects;
DROP FUNCTION arc_halo_refuse_update();
DROP FUNCTION arc_halo_touch_updated_at();
