"""Authentication: the keys that verify tokens, and the way from a JWT to a `Principal`."""
