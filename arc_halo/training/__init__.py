"""Training state: sessions, their metrics, and the checkpoints that they resume from."""
