"""Manifests: loading, validating and resolving YAML; knows no database."""
