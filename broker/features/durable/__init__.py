"""Durable subscriptions: `acknowledge`, and the cursors that say where a user's acknowledgements stand."""
