DROP TABLE attention_patterns;
DROP TABLE activation_cache;
DROP TABLE kv_cache_bodies;
DROP TABLE kv_cache;
DROP TABLE inference_metrics;
DROP TABLE inference_sessions;
