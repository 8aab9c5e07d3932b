"""Checkpoints: all that a training resumes from, saved, found, compared, let go and restored."""
