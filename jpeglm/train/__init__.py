"""Training: the step, the loop and what surrounds it."""
