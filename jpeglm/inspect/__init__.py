"""What is in prepared data."""
