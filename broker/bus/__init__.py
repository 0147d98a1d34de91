"""NATS: the port that actors use, and the parts behind it."""
