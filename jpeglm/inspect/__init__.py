"""Shows what is in prepared data."""
