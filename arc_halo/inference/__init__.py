"""Models at work: sessions of inference, caches, and attention patterns."""
