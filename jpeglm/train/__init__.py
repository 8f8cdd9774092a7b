"""Training: the step, the loop, and their monitoring."""
