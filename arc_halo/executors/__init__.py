"""Where the workers of merges run."""
