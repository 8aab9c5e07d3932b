"""Dtypes, chunks and digests."""
