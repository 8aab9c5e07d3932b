"""Tensor codecs, one a file, registered through the public hook."""
