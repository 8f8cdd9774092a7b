"""Compiles the step for machines that are not available."""
