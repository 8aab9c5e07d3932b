DROP VIEW v_training_progress;
DROP FUNCTION get_latest_checkpoint(uuid);
DROP TABLE gradient_checkpoints;
DROP TABLE optimizer_state;
DROP TABLE model_checkpoints;
DROP TABLE training_metrics;
DROP TABLE training_series;
DROP TABLE training_sessions;
