"""Who a client is: the keys that tokens are checked with, and the way from a JWT to a `Principal`."""
