"""Weight merging: compatibility, recipes, the run, lineage."""
