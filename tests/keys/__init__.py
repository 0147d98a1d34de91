"""Each key of the configuration, and what of a running broker it decides."""
