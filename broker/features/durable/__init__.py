"""Durable subscriptions: `acknowledge`, and the cursors with the positions that users have acknowledged."""
