"""Documents to ids and back."""
