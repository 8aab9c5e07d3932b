"""Fusion strategies, one a file, registered through the public hook."""
