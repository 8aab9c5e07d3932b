DROP VIEW v_model_architecture;
DROP FUNCTION calculate_model_parameters(uuid);
-- Takes the tables of vectors along, which were made at run time.
DELETE FROM embedding_indexes;
DROP TABLE embedding_indexes;
DROP FUNCTION arc_halo_drop_vectors();
DROP TABLE embeddings;
DROP TABLE model_weights;
DROP TABLE attention_heads;
DROP TABLE transformer_layers;
DROP TABLE model_weight_history;
DROP TABLE model_alias_history;
DROP TABLE model_aliases;
DROP TABLE models;
DROP TABLE tokenizers;
