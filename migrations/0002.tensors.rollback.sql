DROP TABLE weight_build_tensors;
DROP TABLE weight_builds;
DROP TABLE weight_set_tensors;
DROP TABLE weight_sets;
DROP TABLE tensor_data;
DROP TABLE tensor_metadata;
DROP TABLE chunk_bodies;
