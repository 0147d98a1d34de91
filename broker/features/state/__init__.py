"""Documents: JSON values that clients see and change."""
